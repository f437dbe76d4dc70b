package fuse

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// beingKilled reports whether a SIGKILL is pending for the thread: the kernel turns every fatal signal into one
// for all threads of the process, and a thread that waits for us cannot take it. False if the process is
// not in our name space or gone.
func beingKilled(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	if err != nil {
		return false
	}
	return pendingKill(status)
}

// exiting reports whether the thread is on its way out of the kernel, closing what it had open.
func exiting(pid uint32) bool {
	if pid == 0 {
		return false
	}
	stat, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/stat")
	return err == nil && flaggedExiting(stat)
}

// flaggedExiting looks into the contents of /proc/PID/stat: after the name, which may hold anything, come state, five numbers, and the flags of the task.
func flaggedExiting(stat []byte) bool {
	const pfExiting = 0x4
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 7 {
		return false
	}
	flags, err := strconv.ParseUint(string(f[6]), 10, 64)
	return err == nil && flags&pfExiting != 0
}

// signaled reports whether a signal that is not blocked is pending for the thread, as it is while that waits for us.
func signaled(pid uint32) bool {
	if pid == 0 {
		return false
	}
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/status")
	return err == nil && pendingMask(status) != 0
}

// pendingKill looks into the contents of /proc/PID/status.
func pendingKill(status []byte) bool { return pendingMask(status)&(1<<(uint(syscall.SIGKILL)-1)) != 0 }

// pendingMask returns the signals that are pending and not blocked.
func pendingMask(status []byte) uint64 {
	var pending, blocked uint64
	for line := range bytes.Lines(status) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
		if err != nil {
			continue
		}
		switch string(key) {
		case "SigPnd", "ShdPnd":
			pending |= mask
		case "SigBlk":
			blocked = mask
		}
	}
	return pending &^ blocked
}
