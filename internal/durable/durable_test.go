package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestWriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "note")
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	for _, text := range []string{"first", "", "third"} {
		if err := WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || string(got) != text {
			t.Errorf("it has %q, %v, not %q", got, err, text)
		}
		if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o644 {
			t.Errorf("its mode is %v, %v", fi.Mode(), err)
		}
	}
	// A link that somebody has put there is not followed: we may be root.
	victim := filepath.Join(t.TempDir(), "victim")
	if err := errors.Join(os.WriteFile(victim, []byte("kept"), 0o600), os.Symlink(victim, path+".tmp")); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(path, []byte("fourth"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(victim); err != nil || string(got) != "kept" {
		t.Errorf("what was linked to has %q, %v", got, err)
	}
	// What can't be put in place leaves nothing.
	if err := os.Mkdir(filepath.Join(dir, "folder"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteFile(filepath.Join(dir, "folder"), []byte("text"), 0o644); err == nil {
		t.Error("a folder was replaced by a file")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("left are %v, %v", left, err)
	}
	if err := WriteFile(filepath.Join(dir, "missing", "note"), nil, 0o644); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in a folder that is missing: %v", err)
	}
}

func TestNote(t *testing.T) {
	dir := t.TempDir()
	n := NoteAt(filepath.Join(dir, "note"))
	if _, err := n.Read(); !errors.Is(err, fs.ErrNotExist) || n.Exists() {
		t.Errorf("a note that nobody wrote: %v", err)
	}
	if err := n.Remove(); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	if err := n.Write([]byte("text")); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Read(); err != nil || string(got) != "text" || !n.Exists() {
		t.Errorf("it says %q, %v", got, err)
	}
	if err := n.Remove(); err != nil || n.Exists() {
		t.Errorf("it is there still: %v", err)
	}
	// A link that leads out of the folder is not read through.
	secret := filepath.Join(t.TempDir(), "secret")
	if err := errors.Join(os.WriteFile(secret, []byte("secret"), 0o600), os.Symlink(secret, n.Path())); err != nil {
		t.Fatal(err)
	}
	if got, err := n.Read(); err == nil {
		t.Errorf("it says %q", got)
	}
	if n := NoteAt(filepath.Join(dir, "missing", "note")); n.Exists() || n.Remove() != nil {
		t.Error("a note in a folder that is missing")
	}
	deep := filepath.Join(dir, "made", "note")
	made := NoteAt(deep).Making(func() error { return os.MkdirAll(filepath.Dir(deep), 0o755) })
	if err := made.Write(nil); err != nil || !made.Exists() {
		t.Errorf("a note in a folder that is made for it: %v", err)
	}
}
