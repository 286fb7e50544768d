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
		Path:     path,
		Sync:     func(context.Context) (Synced, error) { return Synced{TXID: "2a"}, nil },
		Foresee:  func(context.Context, time.Time) error { return nil },
		Requests: new(Requests),
		Status:   http.NotFoundHandler(),
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

// The socket of a process that was killed is replaced. That of one that lives stays,
// and so does a file.
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
	if _, err := Listen(t.Context(), Config{Path: file}); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("over a file: %v", err)
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "mine" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

// comply plays the container: it carries out one request after the other.
func comply(t *testing.T, q *Requests, do func(*Request)) {
	t.Helper()
	end, ended := make(chan struct{}), make(chan struct{})
	stop := q.Open()
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-stop:
			}
			r := q.Take(true)
			stop = q.Open()
			do(r)
		}
	}()
	t.Cleanup(func() { close(end); <-ended })
}

func TestAnswers(t *testing.T) {
	at := time.Date(2026, 11, 23, 5, 32, 19, 123456789, time.UTC)
	path := filepath.Join(t.TempDir(), "s")
	requests := new(Requests)
	s := serve(t, path, func(cfg *Config) {
		cfg.Requests = requests
		cfg.Foresee = func(_ context.Context, timestamp time.Time) error {
			if timestamp.IsZero() {
				return &Refusal{"not now"}
			}
			return nil
		}
		cfg.Sync = func(ctx context.Context) (Synced, error) {
			<-ctx.Done() // the client has gone
			return Synced{}, ctx.Err()
		}
	})
	c := Client{path}
	var refused *Refusal
	if _, err := c.Restore(t.Context(), at); !errors.As(err, &refused) || refused.Why != "another restore is under way, or the container is stopping" {
		t.Errorf("before the app runs: %v", err)
	}
	comply(t, requests, func(r *Request) {
		switch {
		case r.PID != os.Getpid() || r.Kind != Restore:
			t.Errorf("a request of kind %d by %d, not by us, %d", r.Kind, r.PID, os.Getpid())
			fallthrough
		case r.Timestamp.Equal(at):
			r.Answer(Restored{TXID: "1", Bytes: 2, TookSeconds: 3, SetAside: "/there"}, nil)
		default:
			r.Answer(Restored{}, errors.New("it went wrong"))
		}
	})
	if _, err := c.Restore(t.Context(), time.Time{}); !errors.As(err, &refused) || refused.Why != "not now" {
		t.Errorf("refused: %v", err)
	}
	if done, err := c.Restore(t.Context(), at); err != nil || done != (Restored{"1", 2, 3, "/there"}) {
		t.Errorf("%v, %v", done, err)
	}
	if _, err := c.Restore(t.Context(), at.Add(1)); err == nil || errors.As(err, &refused) || err.Error() != "it went wrong" {
		t.Errorf("failed: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Sync(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("too late: %v", err)
	}
	_ = s.Close()
	if _, err := c.Sync(t.Context()); err == nil || !strings.Contains(err.Error(), "nothing answers on "+path) {
		t.Errorf("nobody there: %v", err)
	}
}

// What goes over the socket is a contract with apps that ask by themselves.
func TestProtocol(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	requests := new(Requests)
	serve(t, path, func(cfg *Config) { cfg.Requests = requests })
	comply(t, requests, func(r *Request) {
		if r.Timestamp.IsZero() {
			r.Answer(Restored{TXID: "1", Bytes: 2, TookSeconds: 0.5, SetAside: "/there"}, nil)
			return
		}
		r.Answer(Restored{}, errors.New("it went wrong\n"))
	})
	client := (Client{path}).HTTP()
	for _, c := range []struct {
		method, url, body string
		status            int
		want              string
	}{
		{"POST", "/sync", "", 200, `{"txid":"2a"}`},
		{"POST", "/restore", "{}", 200, `{"txid":"1","bytes":2,"took_seconds":0.5,"set_aside":"/there"}`},
		{"POST", "/restore", "null", 200, `{"txid":"1","bytes":2,"took_seconds":0.5,"set_aside":"/there"}`},
		{"POST", "/restore", `{"timestamp":"2026-11-23T05:32:19Z"}`, 500, `{"error":"it went wrong"}`},
		{"POST", "/restore", "", 409, `{"error":"the body of the request can't be read as JSON: EOF"}`},
		{"GET", "/sync", "", 404, "404 page not found"},
		{"PUT", "/sync", "", 405, "Method Not Allowed"},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, "http://any"+c.url, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var body strings.Builder
		_ = resp.Write(&body)
		_ = resp.Body.Close()
		_, got, _ := strings.Cut(body.String(), "\r\n\r\n")
		if got = strings.TrimSpace(got); resp.StatusCode != c.status || got != c.want {
			t.Errorf("%s %s %q: %d %s, not %d %s", c.method, c.url, c.body, resp.StatusCode, got, c.status, c.want)
		}
	}
	client.CloseIdleConnections()
}
