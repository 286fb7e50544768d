package volume

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

func TestOneHasIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := lockAlone(path, "the first\x1b[31m")
	if err != nil {
		t.Fatal(err)
	}
	var held *HeldError
	if _, err := lockAlone(path, "the second"); !errors.As(err, &held) || held.By != "the first[31m" {
		t.Errorf("the second: %v", err)
	}
	first.release()
	second, err := lockAlone(path, "the second")
	if err != nil {
		t.Fatal(err)
	}
	defer second.release()
	if _, err := lockAlone(path, "the third"); !errors.As(err, &held) || held.By != "the second" {
		t.Errorf("the third: %v", err)
	}
	if _, err := lockAlone(filepath.Join(t.TempDir(), "no", "folder"), ""); err == nil || errors.As(err, &held) {
		t.Errorf("without a folder: %v", err)
	}
}

// A shared lock keeps off one that wants it alone, and its file stays when it goes.
func TestShared(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var shared []*flock
	for range 2 {
		l, err := lockShared(path)
		if err != nil {
			t.Fatal(err)
		}
		shared = append(shared, l)
	}
	for _, l := range shared {
		if _, err := lockAlone(path, ""); !isHeld(err) {
			t.Errorf("beside a shared one: %v", err)
		}
		l.release()
	}
	alone, err := lockAlone(path, "")
	if err != nil {
		t.Fatal(err)
	}
	defer alone.release()
	if _, err := lockShared(path); !isHeld(err) {
		t.Errorf("beside one that has it alone: %v", err)
	}
}

// Whoever comes first has it alone, however many come and go.
func TestNeverTwo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	var inside, turns atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for turns.Load() < 2000 {
				l, err := lockAlone(path, "")
				if err != nil {
					continue
				}
				if inside.Add(1) != 1 {
					t.Error("two have it")
				}
				turns.Add(1)
				inside.Add(-1)
				l.release()
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

// A link is neither followed nor written through, wherever it leads.
func TestALinkIsNotLocked(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "lock")
	for _, target := range []string{filepath.Join(dir, "beside"), filepath.Join(t.TempDir(), "elsewhere")} {
		if err := os.WriteFile(target, []byte("kept"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, link := range []string{target, filepath.Base(target)} {
			if err := os.Symlink(link, path); err != nil {
				t.Fatal(err)
			}
			if _, err := lockAlone(path, "me"); err == nil || isHeld(err) {
				t.Errorf("by a link to %s: %v", link, err)
			}
			if got, err := os.ReadFile(target); err != nil || string(got) != "kept" {
				t.Errorf("%s has %q, %v", target, got, err)
			}
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// An app may put another data folder in the place of ours: what is locked there by
// somebody else stays locked when our lock goes.
func TestReleaseLeavesAnotherFolderAlone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "lock")
	take := func() *flock {
		t.Helper()
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		l, err := lockAlone(path, "")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	old := take()
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	defer take().release()
	old.release()
	if _, err := lockAlone(path, ""); !isHeld(err) {
		t.Errorf("the new folder's: %v", err)
	}
}

// Another user's lock file is locked too, through a folder that only lets pass.
func TestAnotherUsersLock(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	if path := os.Getenv("LOCK_TEST_TRY"); path != "" {
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(12345), syscall.Setuid(12345)); err != nil {
			t.Fatal(err)
		}
		l, err := lockShared(path)
		if err != nil {
			t.Fatal(err)
		}
		l.release()
		_, err = lockAlone(os.Getenv("LOCK_TEST_HELD"), "the child")
		var held *HeldError
		if !errors.As(err, &held) || held.By != "the parent" {
			t.Fatal(err)
		}
		return
	}
	dir, err := os.MkdirTemp("/tmp", "lock") // others may not pass through t.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	free, held := filepath.Join(dir, "free"), filepath.Join(dir, "held")
	if err := errors.Join(os.WriteFile(free, nil, 0o644), os.Chmod(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	l, err := lockAlone(held, "the parent")
	if err != nil {
		t.Fatal(err)
	}
	defer l.release()
	bin := filepath.Join(dir, "test")
	if err := os.Link(os.Args[0], bin); err != nil {
		if b, err := os.ReadFile(os.Args[0]); err != nil || os.WriteFile(bin, b, 0o755) != nil {
			t.Fatal(err)
		}
	}
	child := exec.Command(bin, "-test.run=^TestAnotherUsersLock$")
	child.Env = append(os.Environ(), "LOCK_TEST_TRY="+free, "LOCK_TEST_HELD="+held)
	if out, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// A process that is killed has it no longer, and its children never had it.
func TestKilled(t *testing.T) {
	if path := os.Getenv("LOCK_TEST_HOLD"); path != "" {
		if _, err := lockAlone(path, "the child"); err != nil {
			t.Fatal(err)
		}
		child := exec.Command("sleep", "1000")
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		_, _ = os.Stdout.WriteString("held\n")
		select {}
	}
	path := filepath.Join(t.TempDir(), "lock")
	holder := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	holder.Env = append(os.Environ(), "LOCK_TEST_HOLD="+path)
	out, w := io.Pipe()
	holder.Stdout = w
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "held\n" {
		t.Fatalf("%q, %v", line, err)
	}
	var held *HeldError
	if _, err := lockAlone(path, ""); !errors.As(err, &held) || held.By != "the child" {
		t.Errorf("while it lives: %v", err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = holder.Process.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for {
		l, err := lockAlone(path, "")
		if err == nil {
			l.release()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}
