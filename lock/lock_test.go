package lock

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestOneHasIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := Try(path, "the first\x1b[31m")
	if err != nil {
		t.Fatal(err)
	}
	var held *HeldError
	if _, err := Try(path, "the second"); !errors.As(err, &held) || held.By != "the first[31m" {
		t.Errorf("the second: %v", err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	second, err := Try(path, "the second")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Release() }()
	if _, err := Try(path, "the third"); !errors.As(err, &held) || held.By != "the second" {
		t.Errorf("the third: %v", err)
	}
	if _, err := Try(filepath.Join(t.TempDir(), "no", "folder"), ""); err == nil || errors.As(err, &held) {
		t.Errorf("without a folder: %v", err)
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
				l, err := Try(path, "")
				if err != nil {
					continue
				}
				if inside.Add(1) != 1 {
					t.Error("two have it")
				}
				turns.Add(1)
				inside.Add(-1)
				if err := l.Release(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is left: %v", err)
	}
}

// A process that is killed has it no longer, and its children never had it.
func TestKilled(t *testing.T) {
	if path := os.Getenv("LOCK_TEST_HOLD"); path != "" {
		if _, err := Try(path, "the child"); err != nil {
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
	if _, err := Try(path, ""); !errors.As(err, &held) || held.By != "the child" {
		t.Errorf("while it lives: %v", err)
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_, _ = holder.Process.Wait()
	deadline := time.Now().Add(10 * time.Second)
	for {
		l, err := Try(path, "")
		if err == nil {
			_ = l.Release()
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(10 * time.Millisecond)
	}
}
