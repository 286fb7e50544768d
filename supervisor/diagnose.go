package supervisor

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// StartError says why a command could not be started.
type StartError struct {
	File string
	Why  string // what is wrong with it, for a person
	// NotFound is true when there is no such file, as opposed to one that can't
	// be executed: exit code 127, as opposed to 126.
	NotFound bool
}

func (e *StartError) Error() string { return fmt.Sprintf("%q %s", e.File, e.Why) }

func startCode(err error) int {
	var e *StartError
	if errors.As(err, &e) && e.NotFound {
		return 127
	}
	return 126
}

// defaultPath is what a shell uses when PATH is not set.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// find returns the file that a shell would execute for name with the app's PATH.
func find(name string, env []string) (string, error) {
	if name == "" {
		return "", &StartError{File: name, Why: "is not a command: the name is empty", NotFound: true}
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			path = v
		}
	}
	unusable := ""
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := filepath.Join(dir, name)
		if dir == "." {
			file = "./" + name
		}
		fi, err := os.Stat(file)
		if err != nil || fi.IsDir() {
			continue
		}
		if unix.Access(file, unix.X_OK) == nil {
			return file, nil
		}
		if unusable == "" {
			unusable = file
		}
	}
	if unusable != "" {
		return "", &StartError{File: unusable, Why: "is not executable (permission denied)"}
	}
	return "", &StartError{File: name, Why: "was not found in PATH (" + path + ")", NotFound: true}
}

// diagnose finds out what the kernel meant: it has one error for a missing
// file and for a missing interpreter, and one for all unknown formats.
func diagnose(file string, user *User, err error) error {
	fi, statErr := os.Stat(file)
	switch {
	case errors.Is(statErr, os.ErrNotExist):
		return &StartError{File: file, Why: "does not exist", NotFound: true}
	case statErr == nil && fi.IsDir():
		return &StartError{File: file, Why: "is a folder"}
	case errors.Is(err, syscall.EACCES) && user != nil:
		return &StartError{File: file, Why: "is not executable for user " + user.String() + " (permission denied)"}
	case errors.Is(err, syscall.EACCES):
		return &StartError{File: file, Why: "is not executable (permission denied)"}
	case errors.Is(err, syscall.EPERM) && user != nil:
		return &StartError{File: file, Why: "can't be run as user " + user.String() + ": only root, with the capabilities SETUID and SETGID, may become somebody else"}
	case errors.Is(err, syscall.EAGAIN):
		return &StartError{File: file, Why: "can't be started: a limit on the number of processes is reached (--pids-limit, ulimit -u)"}
	case errors.Is(err, syscall.E2BIG):
		return &StartError{File: file, Why: "can't be started: its arguments and environment are too long"}
	case errors.Is(err, syscall.ENOENT):
		if i := interpreter(file); i != "" {
			return &StartError{File: file, Why: fmt.Sprintf("needs the interpreter %q, which does not exist in this image", i), NotFound: true}
		}
		return &StartError{File: file, Why: "or its interpreter does not exist", NotFound: true}
	case errors.Is(err, syscall.ENOEXEC):
		return &StartError{File: file, Why: "is not a program for this machine (" + kind(file) + ")"}
	}
	return &StartError{File: file, Why: "can't be executed: " + err.Error()}
}

// interpreter returns what a script's first line or an ELF header asks for.
func interpreter(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	line, _ := bufio.NewReader(io.LimitReader(f, 256)).ReadString('\n')
	if rest, ok := strings.CutPrefix(line, "#!"); ok {
		if fields := strings.Fields(rest); len(fields) > 0 {
			return fields[0]
		}
		return ""
	}
	h, _ := readELF(f)
	return h.interpreter
}

// kind says what a file that the kernel does not know looks like.
func kind(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return "its format is unknown"
	}
	defer func() { _ = f.Close() }()
	if h, ok := readELF(f); ok {
		return fmt.Sprintf("it is built for %s, this is %s", h.machine, runtime.GOARCH)
	}
	return "a script needs a first line like #!/bin/sh"
}
