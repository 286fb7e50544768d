package testbed

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// NeedRoot skips the test where it does not run as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for mounts, namespaces, chroot and other users")
	}
}

// Children lists the children that the threads of a process have, zombies too.
func Children(pid int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var list []int
	for _, file := range tasks {
		b, _ := os.ReadFile(file)
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// Stat returns a field of /proc/PID/stat, counted as in proc_pid_stat(5) from 1, of
// those behind the name: 3 is the state, 4 the parent. It is empty when there is no
// such process.
func Stat(pid, field int) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	rest := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(rest) < field-2 {
		return ""
	}
	return rest[field-3]
}

// Lives reports whether a process exists and has not ended. A zombie has ended.
func Lives(pid int) bool {
	state := Stat(pid, 3)
	return state != "" && state != "Z"
}
