// Package planted names bugs that a test can put into the cluster, to show that what should find them does (internal/sim). A binary has them
// only with the build tag planted, which nothing but that test uses; without it Is is false for the compiler, and nothing of them is left.
package planted

// The bugs. Each is asked for at one place, which says what it does.
const (
	ForgetFence      = "forget-the-fence"               // a chunk server answers a fence and forgets it
	ServeUnclean     = "serve-while-unclean"            // a replica serves after a crash before it was accepted
	SkipAdoption     = "skip-adopting-the-epoch"        // a replica does what comes with a higher epoch, and keeps its own
	ReadJoining      = "read-a-joining-replica"         // clients read joining replicas, which answer
	ApplyTwice       = "apply-an-event-twice"           // a metadata server applies some events twice
	GrantBeforeFence = "grant-a-lease-before-the-fence" // a lease is granted though chunk servers still serve who held it
)
