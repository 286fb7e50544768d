package control

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func serve(t *testing.T, path string, change func(*Config)) *Server {
	t.Helper()
	cfg := Config{
		Path:    path,
		Sync:    func(context.Context) (Synced, error) { return Synced{TXID: "2a"}, nil },
		Restore: func(context.Context, Order) (Restored, error) { return Restored{}, nil },
		Status:  http.NotFoundHandler(),
	}
	if change != nil {
		change(&cfg)
	}
	s, err := Listen(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// A path that is longer than an address can be is reached all the same.
func TestLongPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("a-long-name/", 20))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "control.sock")
	s := serve(t, path, nil)
	if done, err := (Client{path}).Sync(t.Context()); err != nil || done.TXID != "2a" {
		t.Errorf("%v, %v", done, err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

// The socket of a process that was killed is replaced; that of one that lives is
// not, and neither is a file.
func TestWhatIsThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil { // leaves the socket's file
		t.Fatal(err)
	}
	serve(t, path, nil)
	if _, err := (Client{path}).Sync(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := Listen(t.Context(), Config{Path: path}); err == nil || !strings.Contains(err.Error(), "another slasha-init answers") {
		t.Errorf("beside one that lives: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(t.Context(), Config{Path: file}); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

func TestAnswers(t *testing.T) {
	at := time.Date(2026, 11, 23, 5, 32, 19, 123456789, time.UTC)
	path := filepath.Join(t.TempDir(), "s")
	s := serve(t, path, func(cfg *Config) {
		cfg.Restore = func(_ context.Context, o Order) (Restored, error) {
			switch {
			case o.PID != os.Getpid():
				t.Errorf("asked by %d, not by us, %d", o.PID, os.Getpid())
			case o.Timestamp.IsZero():
				return Restored{}, &Refusal{"not now"}
			case o.Timestamp.Equal(at):
				return Restored{TXID: "1", Bytes: 2, TookSeconds: 3, SetAside: "/there"}, nil
			}
			return Restored{}, errors.New("it went wrong")
		}
		cfg.Sync = func(ctx context.Context) (Synced, error) {
			<-ctx.Done() // who asked has gone
			return Synced{}, ctx.Err()
		}
	})
	c := Client{path}
	var refused *Refusal
	if _, err := c.Restore(t.Context(), Order{}); !errors.As(err, &refused) || refused.Why != "not now" {
		t.Errorf("refused: %v", err)
	}
	if done, err := c.Restore(t.Context(), Order{Timestamp: at}); err != nil || done != (Restored{"1", 2, 3, "/there"}) {
		t.Errorf("%v, %v", done, err)
	}
	if _, err := c.Restore(t.Context(), Order{Timestamp: at.Add(1)}); err == nil || errors.As(err, &refused) || err.Error() != "it went wrong" {
		t.Errorf("failed: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
	_ = s.Close()
	if _, err := c.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "nobody answers on "+path) {
		t.Errorf("nobody there: %v", err)
	}
}
