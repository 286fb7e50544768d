package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFree(t *testing.T) {
	dir := t.TempDir()
	free, total, err := Free(dir)
	if err != nil || free <= 0 || total < free {
		t.Errorf("%d of %d bytes are free, %v", free, total, err)
	}
	// An ordinary disk: neither is a number of blocks.
	if total < 1<<20 {
		t.Errorf("the file system of %s has only %d bytes", dir, total)
	}
	if _, _, err := Free(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a folder that is missing: %v", err)
	}
}

// A file keeps its identity when it is moved, and no other file has it.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	one, other := filepath.Join(dir, "one"), filepath.Join(dir, "other")
	of := func(path string) [2]uint64 {
		t.Helper()
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		device, inode := Identity(fi)
		return [2]uint64{device, inode}
	}
	for _, path := range []string{one, other} {
		if err := os.WriteFile(path, []byte("the same"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	was := of(one)
	if was[1] == 0 || was == of(other) {
		t.Errorf("two files are %v and %v", was, of(other))
	}
	if err := os.Rename(one, other); err != nil {
		t.Fatal(err)
	}
	if is := of(other); is != was {
		t.Errorf("it is %v after a move, and was %v", is, was)
	}
}
