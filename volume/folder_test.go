package volume

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestFolder(t *testing.T) {
	f := FolderOf("/data/app.db")
	for got, want := range map[string]string{
		f.Path():            "/data/.app.db.slasha",
		f.ControlSocket():   "/data/.app.db.slasha/control.sock",
		f.Lease().Path():    "/data/.app.db.slasha/lease.json",
		f.Adopted().Path():  "/data/.app.db.slasha/adopted.json",
		f.NewLine().Path():  "/data/.app.db.slasha/new-line",
		f.Restored().Path(): "/data/.app.db.slasha/restored.json",
		f.Verified().Path(): "/data/.app.db.slasha/verified.json",
		f.Scratch():         "/data/.app.db.slasha/restore",
		f.Aside():           "/data/.app.db.slasha/aside",
		f.Drill():           "/data/.app.db.slasha/drill",
	} {
		if got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}

// Our folder is open to those who may write the folder around it.
func TestFolderMode(t *testing.T) {
	for name, c := range map[string]struct{ around, want os.FileMode }{
		"its owner's":            {0o755, 0o711},
		"a group's":              {0o775, 0o771},
		"everybody's":            {0o777, 0o777},
		"everybody's, like /tmp": {0o777 | os.ModeSticky, 0o711},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.Chmod(dir, c.around); err != nil {
				t.Fatal(err)
			}
			f := FolderOf(filepath.Join(dir, "app.db"))
			for range 2 { // the second time it is there
				if err := f.Make(); err != nil {
					t.Fatal(err)
				}
			}
			if fi, err := os.Stat(f.Path()); err != nil || fi.Mode().Perm() != c.want {
				t.Errorf("its mode is %v, %v", fi.Mode(), err)
			}
		})
	}
}

// What stands in our folder's place keeps its mode.
func TestFolderThatIsAFile(t *testing.T) {
	f := FolderOf(filepath.Join(t.TempDir(), "app.db"))
	if err := os.WriteFile(f.Path(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.Make(); !errors.Is(err, syscall.ENOTDIR) {
		t.Errorf("%v", err)
	}
	if fi, err := os.Stat(f.Path()); err != nil || fi.Mode() != 0o600 {
		t.Errorf("its mode is %v, %v", fi.Mode(), err)
	}
}

func TestMayReplace(t *testing.T) {
	for name, c := range map[string]struct {
		mode     os.FileMode
		uid, gid uint32
		want     bool
	}{
		"the owner":                  {0o755, 1, 9, true},
		"an owner who can't write":   {0o555, 1, 9, false},
		"the group":                  {0o775, 9, 2, true},
		"a group that can't write":   {0o755, 9, 2, false},
		"another":                    {0o775, 9, 9, false},
		"another, if everybody may":  {0o777, 9, 9, true},
		"another, in one like /tmp":  {0o777 | os.ModeSticky, 9, 9, false},
		"the owner of one like /tmp": {0o777 | os.ModeSticky, 1, 9, true},
	} {
		t.Run(name, func(t *testing.T) {
			if os.Getuid() != 0 {
				t.Skip("needs root")
			}
			dir := t.TempDir()
			if err := os.Chown(dir, 1, 2); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, c.mode); err != nil {
				t.Fatal(err)
			}
			if got := FolderOf(filepath.Join(dir, "app.db")).MayReplace(c.uid, c.gid); got != c.want {
				t.Errorf("%v", got)
			}
		})
	}
}

// A new folder gets the owner of what it is in, however deep it is.
func TestMakeFolder(t *testing.T) {
	dir := t.TempDir()
	if os.Getuid() == 0 {
		if err := os.Chown(dir, 1, 2); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	deep := filepath.Join(dir, "a", "b", "c")
	for range 2 {
		if err := MakeFolder(deep); err != nil {
			t.Fatal(err)
		}
	}
	for ; deep != dir; deep = filepath.Dir(deep) {
		fi, err := os.Stat(deep)
		if err != nil {
			t.Fatal(err)
		}
		if owner(fi) != owner(want) {
			t.Errorf("%s belongs to %v, not to %v", deep, owner(fi), owner(want))
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := MakeFolder(filepath.Join(file, "a")); err == nil {
		t.Error("a folder in a file")
	}
}

func owner(fi os.FileInfo) [2]uint32 {
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return [2]uint32{}
	}
	return [2]uint32{st.Uid, st.Gid}
}
