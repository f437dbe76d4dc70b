// Package crash tries to make a chunk server lose or falsify data: a real process on a real filesystem (ext4 and XFS in an image) that
// gets SIGKILL in the middle of writes, a disk that lies, loses, tears and misdirects writes, bits that rot under load, and memory that is
// short. It has no code of its own outside tests.
//
// The chunk server is the test program itself, started again (main_test.go), and the metadata server one that does no more than a
// chunk server needs (leader_test.go). What a sector may hold is kept in a model (model_test.go), and every sector says what it is.
//
// The tests with processes run when VARVE_E2E=1 is set; those that mount or make a cgroup need root. VARVE_KILLS=N sets how often a
// server is killed on each filesystem (default 20), VARVE_SEEDS=N how many disks are simulated; `make soak` has the long form.
package crash
