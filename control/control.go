// Package control is how a running container is asked for something from the
// inside: by the app, which wants a commit to be safe before it says so, or by
// a person or a dashboard, through docker exec. It is HTTP over a Unix socket.
//
//	POST /sync     returns when all that was committed before is in the replica
//	POST /restore  restores while the app waits, and starts it again
//	GET  /...      what the health page has
//
// Who may ask is decided by the user that the kernel names for the other end,
// and not by the socket's permissions: root, our own user, and whom main lets.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Synced is the answer to a sync.
type Synced struct {
	// TXID is the newest transaction in the replica, or "" where the app has not
	// made a database yet.
	TXID string `json:"txid"`
}

// Order is what a restore is asked for with.
type Order struct {
	// Timestamp is the moment to go back to; zero is the newest state.
	Timestamp time.Time `json:"timestamp,omitzero"`

	// PID is who asks, 0 where the kernel can't tell, as for a process of another
	// PID namespace. The server fills it in.
	PID int `json:"-"`
}

// Restored is the answer to a restore.
type Restored struct {
	TXID        string  `json:"txid"`
	Bytes       int64   `json:"bytes"` // read from the replica
	TookSeconds float64 `json:"took_seconds"`
	SetAside    string  `json:"set_aside"` // where the database that was replaced is
}

// Refusal is the error for what can't be done now. Nothing was changed by the
// attempt.
type Refusal struct{ Why string }

func (r *Refusal) Error() string { return r.Why }

// Config is what a Server needs. All but May and Logger is required.
type Config struct {
	// Path is where the socket is made, in a folder that exists. What a process
	// that was killed left there is replaced.
	Path string

	// May says who may ask, besides root and our own user, and is asked each time.
	// Optional.
	May func(uid, gid uint32) bool

	// Sync and Restore do what they are asked for, and return when it is done. They
	// are called from several goroutines at once. Their errors are told to who
	// asked, and must hold no secret; a *Refusal says that it can't be done now. The
	// context of Sync ends when who asked goes away; a restore goes on.
	Sync    func(context.Context) (Synced, error)
	Restore func(context.Context, Order) (Restored, error)

	// Status answers everything else.
	Status http.Handler

	Logger *slog.Logger
}

// Server answers on a socket. Close it.
type Server struct {
	path string
	http *http.Server
	done chan struct{}
}

// Listen makes the socket and begins to answer.
func Listen(ctx context.Context, cfg Config) (*Server, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	listener, err := listen(ctx, cfg.Path)
	if err != nil {
		return nil, err
	}
	s := &Server{path: cfg.Path, done: make(chan struct{})}
	s.http = &http.Server{
		Handler:           cfg.handler(),
		ReadHeaderTimeout: 5 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ConnContext:       withPeer,
		ErrorLog:          log.New(io.Discard, "", 0), // who hangs up tells nobody anything
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("the control socket is closed", "error", err)
		}
	}()
	return s, nil
}

// Close ends the server and everybody's question at once, and removes the
// socket.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return errors.Join(err, os.Remove(s.path))
}

// listen makes the socket. One that nobody answers on is a dead process's; one
// that somebody answers on is left alone.
func listen(ctx context.Context, path string) (net.Listener, error) {
	short, release, err := shortened(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", short)
	if errors.Is(err, syscall.EADDRINUSE) {
		var d net.Dialer
		if conn, err := d.DialContext(ctx, "unix", short); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("another slasha-init answers on %s", path)
		}
		if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s is there, and is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		l, err = lc.Listen(ctx, "unix", short)
	}
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // by a name that may mean another folder by then
	}
	// Anybody may knock; the handler looks at who it is.
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// longestPath is what sockaddr_un has room for, in bytes; see unix(7).
const longestPath = 107

// shortened returns a path for the same socket that the kernel has room for: one
// through a descriptor of its folder, which is good until release is called.
func shortened(path string) (short string, release func(), err error) {
	if len(path) <= longestPath {
		return path, func() {}, nil
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)), func() { _ = unix.Close(dir) }, nil
}

type peerKey struct{}

// withPeer notes who is at the other end, as the kernel has it.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			ctx = context.WithValue(ctx, peerKey{}, peer)
		}
	})
	return ctx
}

// handler routes a request, when it comes from somebody who may ask.
func (cfg Config) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sync", func(w http.ResponseWriter, r *http.Request) {
		done, err := cfg.Sync(r.Context())
		answer(w, done, err)
	})
	mux.HandleFunc("POST /restore", func(w http.ResponseWriter, r *http.Request) {
		var order Order
		if err := json.NewDecoder(io.LimitReader(r.Body, 4<<10)).Decode(&order); err != nil {
			answer(w, nil, &Refusal{"the request is no JSON of an order: " + err.Error()})
			return
		}
		if peer, ok := r.Context().Value(peerKey{}).(*unix.Ucred); ok {
			order.PID = int(peer.Pid)
		}
		done, err := cfg.Restore(context.WithoutCancel(r.Context()), order)
		answer(w, done, err)
	})
	mux.Handle("GET /", cfg.Status)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, ok := r.Context().Value(peerKey{}).(*unix.Ucred); !ok || !cfg.mayAsk(peer) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusForbidden)
			_ = json.NewEncoder(w).Encode(failure{"only root, slasha-init's own user, the app's, and who may write the database's folder may ask"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (cfg Config) mayAsk(peer *unix.Ucred) bool {
	return peer.Uid == 0 || int(peer.Uid) == os.Geteuid() || cfg.May != nil && cfg.May(peer.Uid, peer.Gid)
}

// failure is the body of an answer that is no success.
type failure struct {
	Error string `json:"error"`
}

func answer(w http.ResponseWriter, done any, err error) {
	w.Header().Set("Content-Type", "application/json")
	var refused *Refusal
	switch {
	case errors.As(err, &refused):
		w.WriteHeader(http.StatusConflict)
	case err != nil:
		w.WriteHeader(http.StatusInternalServerError)
	}
	if err != nil {
		done = failure{strings.TrimSpace(err.Error())}
	}
	_ = json.NewEncoder(w).Encode(done)
}
