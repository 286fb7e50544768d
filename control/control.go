// Package control takes requests to a running container. Some come from the inside: from
// the app, which wants a commit to be safe before it confirms it, or from a person or a
// dashboard, through docker exec. Others come from the program itself, when the database
// is stale or the lease is lost (see Requests). Those from the inside use HTTP over a
// Unix socket.
//
//	POST /sync     returns when everything committed before it is in the replica
//	POST /restore  restores while the app waits, and starts it again
//	GET  /...      serves what the health page serves
//
// Who may ask depends on the user at the other end, as the kernel names it, and not on
// the socket's permissions: root may, and so may our own user and those whom main allows.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Synced is the answer to a sync.
type Synced struct {
	// TXID is the newest transaction in the replica, or "" where the app has not
	// made a database yet.
	TXID string `json:"txid"`
}

// Restored is the answer to a restore.
type Restored struct {
	TXID        string  `json:"txid"`
	Bytes       int64   `json:"bytes"` // read from the replica
	TookSeconds float64 `json:"took_seconds"`
	SetAside    string  `json:"set_aside"` // where the database that was replaced is
}

// Refusal is the error for what can't be done now. The attempt changed nothing.
type Refusal struct{ Why string }

func (r *Refusal) Error() string { return r.Why }

// order is the body of a request for a restore.
type order struct {
	Timestamp time.Time `json:"timestamp,omitzero"`
}

// failure is the body of an answer that reports a failure.
type failure struct {
	Error string `json:"error"`
}

// Config is what a Server needs. All of it but May and Logger is required.
//
// Sync and Foresee are called from several goroutines at once. Whoever asked reads their
// errors, so these must hold no secret; a *Refusal says that it can't be done now.
type Config struct {
	// Path is where the socket is made, in a folder that exists. A socket that a killed
	// process left there is replaced.
	Path string

	// May says who may ask, besides root and our own user, and is asked each time.
	// Optional.
	May func(uid, gid uint32) bool

	// Sync returns when everything that is committed is in the replica. Its context ends
	// when the one who asked goes away.
	Sync func(context.Context) (Synced, error)

	// Foresee looks whether the replica can be restored as of a moment (zero is the newest
	// state), while the app still runs. The error refuses the request.
	Foresee func(ctx context.Context, timestamp time.Time) error

	// Requests gets each restore that Foresee lets pass. The server returns its answer, and
	// a restore goes on when the one who asked goes away.
	Requests *Requests

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
		ErrorLog:          log.New(io.Discard, "", 0), // a client that hangs up does not matter
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			cfg.Logger.Error("the control socket is closed", "error", err)
		}
	}()
	return s, nil
}

// Close ends the server and all connections at once, and removes the socket.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return errors.Join(err, os.Remove(s.path))
}

// handler routes what comes from somebody who may ask.
func (cfg Config) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sync", func(w http.ResponseWriter, r *http.Request) {
		done, err := cfg.carryOut(r.Context(), &Request{Kind: Sync})
		reply(w, done, err)
	})
	mux.HandleFunc("POST /restore", func(w http.ResponseWriter, r *http.Request) {
		var o order
		if err := json.NewDecoder(io.LimitReader(r.Body, 4<<10)).Decode(&o); err != nil {
			reply(w, nil, &Refusal{"the body of the request can't be read as JSON: " + err.Error()})
			return
		}
		asked := &Request{Kind: Restore, Timestamp: o.Timestamp}
		if peer, ok := peerOf(r.Context()); ok {
			asked.PID = int(peer.Pid)
		}
		done, err := cfg.carryOut(r.Context(), asked)
		reply(w, done, err)
	})
	mux.Handle("GET /", cfg.Status)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, ok := peerOf(r.Context()); !ok || !cfg.mayAsk(peer) {
			send(w, http.StatusForbidden, failure{"only root, slasha-init's own user, the app's user, and users who may write the database's folder may ask"})
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (cfg Config) mayAsk(peer *unix.Ucred) bool {
	return peer.Uid == 0 || int(peer.Uid) == os.Geteuid() || cfg.May != nil && cfg.May(peer.Uid, peer.Gid)
}

// carryOut has the container carry out a Sync or a Restore, and returns the outcome. A Sync
// is made here and at once, beside the app. A Restore is placed in Requests, so that the app
// is stopped for it, and is answered by main; one that is known to fail is refused while
// the app still runs.
func (cfg Config) carryOut(ctx context.Context, asked *Request) (any, error) {
	if !kinds[asked.Kind].stops {
		return cfg.Sync(ctx)
	}
	if err := cfg.Foresee(context.WithoutCancel(ctx), asked.Timestamp); err != nil {
		return nil, err
	}
	if !cfg.Requests.Place(asked) {
		return nil, &Refusal{"another restore is under way, or the container is stopping"}
	}
	to := "newest"
	if !asked.Timestamp.IsZero() {
		to = asked.Timestamp.UTC().Format(time.RFC3339Nano)
	}
	cfg.Logger.Info("a restore was requested on the control socket: stopping the app for it; it is started again afterwards", "to", to, "pid", asked.PID)
	return asked.wait()
}

func reply(w http.ResponseWriter, done any, err error) {
	var refused *Refusal
	switch {
	case errors.As(err, &refused):
		send(w, http.StatusConflict, failure{strings.TrimSpace(err.Error())})
	case err != nil:
		send(w, http.StatusInternalServerError, failure{strings.TrimSpace(err.Error())})
	default:
		send(w, http.StatusOK, done)
	}
}

func send(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
