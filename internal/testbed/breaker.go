package testbed

import (
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Breaker stands in front of an S3 server and breaks what a test asks for, on the
// level of requests; Proxy does it on that of connections. The Host header goes
// through as it is, so signatures hold.
type Breaker struct {
	Addr string // of the breaker itself

	mu     sync.Mutex
	random *rand.Rand
	share  float64 // of the requests that are broken
	fault  func(forward http.Handler, w http.ResponseWriter, r *http.Request) (broken bool)
	broken int
	asked  []Asked
}

// StartBreaker starts a breaker in front of upstream. It passes everything on until a
// test asks for a fault. The seed decides which requests are broken if the fault is to
// hit only some of them.
func StartBreaker(t testing.TB, upstream string, seed uint64) *Breaker {
	t.Helper()
	b := &Breaker{random: rand.New(rand.NewPCG(seed, 0))}
	forward := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: upstream})
	// What a client breaks off, or a server that is gone, is the test's doing.
	forward.ErrorLog = log.New(io.Discard, "", 0)
	forward.ErrorHandler = func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) }
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b.mu.Lock()
		b.asked = append(b.asked, Asked{time.Now(), r.Method + " " + r.URL.String()})
		fault := b.fault
		if fault != nil && b.random.Float64() >= b.share {
			fault = nil
		}
		b.mu.Unlock()
		if fault == nil || !fault(forward, w, r) {
			forward.ServeHTTP(w, r)
		}
	}))
	srv.Config.ErrorLog = forward.ErrorLog
	srv.Start()
	t.Cleanup(func() {
		srv.CloseClientConnections()
		srv.Close()
	})
	b.Addr = srv.Listener.Addr().String()
	return b
}

func (b *Breaker) set(share float64, f func(http.Handler, http.ResponseWriter, *http.Request) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.share, b.fault = share, f
}

func (b *Breaker) count() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.broken++
}

// Answer makes it answer a share of the requests with an S3 error, without asking
// the server.
func (b *Breaker) Answer(share float64, status int, code string) {
	b.set(share, func(_ http.Handler, w http.ResponseWriter, r *http.Request) bool {
		b.count()
		answer(w, r, status, code)
		return true
	})
}

// AnswerAfter makes it answer every request with an S3 error once it has passed on so
// many more that put something into a folder.
func (b *Breaker) AnswerAfter(passed int, folder string, status int, code string) {
	b.set(1, func(_ http.Handler, w http.ResponseWriter, r *http.Request) bool {
		b.mu.Lock()
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, folder) {
			passed--
		}
		over := passed < 0
		if over {
			b.broken++
		}
		b.mu.Unlock()
		if over {
			answer(w, r, status, code)
		}
		return over
	})
}

func answer(w http.ResponseWriter, r *http.Request, status int, code string) {
	// A client that is still writing may not see an answer.
	_, _ = io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "application/xml")
	w.WriteHeader(status)
	if r.Method != http.MethodHead {
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="UTF-8"?>`+"\n<Error><Code>%s</Code><Message>a test asked for it</Message></Error>", code)
	}
}

// LoseReplies makes it pass a share of the requests of a method to the server,
// and close the connection instead of passing the server's answer back.
func (b *Breaker) LoseReplies(share float64, method string) {
	b.set(share, func(forward http.Handler, _ http.ResponseWriter, r *http.Request) bool {
		if r.Method != method {
			return false
		}
		b.count()
		forward.ServeHTTP(httptest.NewRecorder(), r)
		panic(http.ErrAbortHandler) // net/http closes the connection without an answer
	})
}

// Swallow makes it take in every request and never answer, like a connection whose other
// end is gone. A request that was swallowed stays so after Heal, until the client gives
// up.
func (b *Breaker) Swallow() {
	b.set(1, func(_ http.Handler, _ http.ResponseWriter, r *http.Request) bool {
		b.count()
		_, _ = io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	})
}

// Heal makes it pass on everything again.
func (b *Breaker) Heal() { b.set(0, nil) }

// Broken is how many requests it has broken so far.
func (b *Breaker) Broken() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.broken
}

// Asked is a request that came to a Breaker.
type Asked struct {
	At  time.Time
	For string // method and URL
}

// Asked lists the requests so far.
func (b *Breaker) Asked() []Asked {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.asked)
}
