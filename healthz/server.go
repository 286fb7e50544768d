package healthz

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
	"strings"
	"time"
)

// Server serves a Health. Close it; it owns its listener and its goroutine.
type Server struct {
	listener net.Listener
	http     *http.Server
	done     chan struct{}
}

// Listen starts to serve h on addr, a host:port whose port may be 0 for a free
// one. It returns when connections are accepted.
func Listen(ctx context.Context, addr string, h *Health, logger *slog.Logger) (*Server, error) {
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("healthz: %w", err)
	}
	s := &Server{
		listener: listener,
		done:     make(chan struct{}),
		http: &http.Server{
			Handler:           h.Handler(),
			ReadHeaderTimeout: 5 * time.Second,
			ReadTimeout:       10 * time.Second,
			WriteTimeout:      30 * time.Second,
			IdleTimeout:       2 * time.Minute,
			MaxHeaderBytes:    16 << 10,
			ErrorLog:          log.New(debugWriter{logger}, "", 0),
		},
	}
	go func() {
		defer close(s.done)
		if err := s.http.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			logger.Error("health page ended", "error", err)
		}
	}()
	return s, nil
}

// Addr is the address in use, with the port that was found for port 0.
func (s *Server) Addr() string { return s.listener.Addr().String() }

// Close ends the listener and all connections at once: the health page is the
// last to go and must not make the stop late.
func (s *Server) Close() error {
	err := s.http.Close()
	<-s.done
	return err
}

// debugWriter takes net/http's own complaints (a client that went away) to the
// debug level.
type debugWriter struct{ logger *slog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.logger.Debug("health page", "message", strings.TrimSpace(string(p)))
	return len(p), nil
}

// Handler returns the pages of h: /healthz, /livez, /readyz, /metrics and the
// status page at /. All answer GET and HEAD, and nothing else.
func (h *Health) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.serveHealth)
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { plain(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", h.serveReady)
	mux.Handle("GET /metrics", h.metrics())
	mux.HandleFunc("GET /{$}", h.servePage)
	return mux
}

func (h *Health) serveHealth(w http.ResponseWriter, _ *http.Request) {
	s := h.Status()
	body, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		plain(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code(s.Healthy))
	_, _ = w.Write(append(body, '\n'))
}

func (h *Health) serveReady(w http.ResponseWriter, _ *http.Request) {
	h.mu.Lock()
	ready, phase := h.ready, h.s.Phase
	h.mu.Unlock()
	if ready {
		plain(w, http.StatusOK, "ok")
		return
	}
	plain(w, http.StatusServiceUnavailable, "not ready: "+string(phase))
}

func code(ok bool) int {
	if ok {
		return http.StatusOK
	}
	return http.StatusServiceUnavailable
}

func plain(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text+"\n")
}
