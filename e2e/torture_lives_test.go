package e2e

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/slashacom/slasha-init/healthz"
	"github.com/slashacom/slasha-init/internal/testbed"
)

// The containers of a torture, and what they said.

// tenure is one container, from its start to its end.
type tenure struct {
	*testbed.Process
	name          string
	place         *place
	began         time.Time
	acks          *ackLog
	said          *testbed.Output
	killed, stops bool // we have sent it a SIGKILL, a SIGTERM
	outage        bool // its bucket was away at a time
	stopSince     time.Time
	code          int
	frozen        []int // processes of the app that are stopped too
	watched       chan struct{}
	mu            sync.Mutex
	polls         []poll
}

// poll is one question to a health page.
type poll struct {
	asked, answered time.Time
	err             error
	healthz.Status
}

func (p poll) held() bool { return p.err == nil && p.Lease.State == "held" }

// ackLog takes an app's stdout.
type ackLog struct {
	mu   sync.Mutex
	rest []byte
	list []signedAck
	odd  []string // lines that are not acks
}

type signedAck struct {
	testbed.Ack
	name string // the signature of who wrote it
}

func (l *ackLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, p...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole {
			return len(p), nil
		}
		l.rest = rest
		var a signedAck
		var at string
		if _, err := fmt.Sscanf(string(line), "ack %d %s %s", &a.ID, &at, &a.name); err != nil {
			l.odd = append(l.odd, string(line))
			continue
		}
		if a.At, _ = time.Parse(time.RFC3339Nano, at); a.At.IsZero() {
			l.odd = append(l.odd, string(line))
			continue
		}
		l.list = append(l.list, a)
	}
}

func (l *ackLog) all() []signedAck {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.list)
}

func pids(p poll) (list []int) {
	for _, q := range p.Processes {
		list = append(list, q.PID)
	}
	return list
}

// start starts the container of a place.
func (a *arena) start(p *place) {
	p.n++
	l := &tenure{
		name: fmt.Sprintf("%s.%d", p.name, p.n), place: p, began: time.Now(), acks: &ackLog{},
		said: &testbed.Output{}, watched: make(chan struct{}), outage: !p.mendAt.IsZero(),
	}
	cmd := testbed.Command(p.settings, testbed.SlashaInit(a.t), "--", testbed.Guestbook(a.t), "worker",
		"--db", p.volume, "--every", "20ms", "--stamp", "--chain", "--name", l.name)
	cmd.Stdout, cmd.Stderr = l.acks, l.said
	l.Process = testbed.StartCmd(a.t, cmd)
	p.now = l
	a.lives = append(a.lives, l)
	a.logf("%s is started, pid %d", l.name, l.Cmd.Process.Pid)
	go l.watch()
}

// watch asks its health page until it has ended.
func (l *tenure) watch() {
	defer close(l.watched)
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.Done():
			return
		case <-tick.C:
		}
		l.ask()
	}
}

func (l *tenure) ask() poll {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	p := poll{asked: time.Now()}
	p.Status, p.err = healthz.Fetch(ctx, l.place.health)
	p.answered = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.polls = append(l.polls, p)
	return p
}

func (l *tenure) answers() []poll {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clip(l.polls)
}

// newest is the newest answer, if there is one.
func (l *tenure) newest() (poll, bool) {
	for _, p := range slices.Backward(l.answers()) {
		if p.err == nil {
			return p, true
		}
	}
	return poll{}, false
}

// signature is how the app with the pid signs.
func (l *tenure) signature(pid int) string { return fmt.Sprintf("%s.%d", l.name, pid) }

// signal sends a signal to slasha-init alone.
func (l *tenure) signal(sig syscall.Signal) {
	_ = l.Cmd.Process.Signal(sig) // it may have ended by itself
}

// isChild guards against a process id that belongs to somebody else by now.
func isChild(pid, parent int) bool { return testbed.Stat(pid, 4) == strconv.Itoa(parent) }
