package testbed

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// CopyFile copies a file, so that everybody may run it. Holes become zeros.
func CopyFile(t testing.TB, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	WriteProgram(t, to, src, 0o755)
}

// WriteProgram writes a file that is going to be executed. While it is open, this
// process starts no other: a child has all that its parent has open until it executes
// its own program, and what somebody has open for writing can't be executed ("text
// file busy").
func WriteProgram(t testing.TB, file string, from io.Reader, mode os.FileMode) {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	to, err := os.OpenFile(file, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
}

// Machine says on what a table was measured.
func Machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return fmt.Sprintf("%s/%s, %d CPUs, Linux %s", runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), unix.ByteSliceToString(u.Release[:]))
}

// WriteDocument replaces what a document of docs has below the line that says which
// target of the Makefile writes it.
func WriteDocument(t testing.TB, name, target, text string) {
	t.Helper()
	file := filepath.Join(Root(), "docs", name)
	old, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	line := "<!-- make " + target + " writes what follows -->\n"
	head, _, found := strings.Cut(string(old), line)
	if !found {
		t.Fatalf("%s has no line %q", file, line)
	}
	if err := os.WriteFile(file, []byte(head+line+text), 0o644); err != nil {
		t.Fatal(err)
	}
}
