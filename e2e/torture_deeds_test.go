package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// What is done to the containers of a torture.

// deed is what is done in a round. Where the container is down, it is started.
type deed struct {
	name   string
	weight int
	do     func(a *arena, p *place, d time.Duration)
}

var deeds = []deed{
	{"kill", 4, func(a *arena, p *place, _ time.Duration) { a.kill(p) }},
	{"stop", 3, func(a *arena, p *place, _ time.Duration) { a.stop(p) }},
	{"freeze", 4, func(a *arena, p *place, d time.Duration) { a.freeze(p, d, false) }},
	{"freeze with its app", 2, func(a *arena, p *place, d time.Duration) { a.freeze(p, d, true) }},
	{"cut off", 4, func(a *arena, p *place, d time.Duration) { a.cut(p, d, p.proxy.Cut) }},
	{"swallow what is sent by", 3, func(a *arena, p *place, d time.Duration) {
		a.cut(p, d, func() { p.proxy.Toxic("timeout", "upstream", map[string]any{"timeout": 0}) })
	}},
	{"down", 2, func(a *arena, p *place, d time.Duration) {
		a.kill(p)
		a.gone(p)
		p.startAt = time.Now().Add(d)
	}},
	{"host down with", 3, func(a *arena, p *place, d time.Duration) { a.hostDown(p, d) }},
	{"lose the volume of", 1, func(a *arena, p *place, d time.Duration) {
		a.hostDown(p, d)
		dir := filepath.Dir(p.volume)
		if err := errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o755)); err != nil {
			a.fatalf("%v", err)
		}
	}},
	{"restart the bucket's server, not", 1, func(a *arena, _ *place, _ time.Duration) {
		for _, q := range a.places {
			if q.now != nil {
				q.now.outage = true
			}
		}
		a.s3.Down()
		a.s3.Up()
	}},
	{"leave alone", 2, func(*arena, *place, time.Duration) {}},
}

// cut takes the bucket away from a place, unless it is away already.
func (a *arena) cut(p *place, d time.Duration, how func()) {
	if p.mendAt.IsZero() {
		how()
	}
	p.mendAt = time.Now().Add(d)
	if p.now != nil {
		p.now.outage = true
	}
}

// hostDown kills all that runs on a volume, for a while.
func (a *arena) hostDown(p *place, d time.Duration) {
	a.t.Helper()
	for _, q := range a.places {
		if q.volume == p.volume {
			a.kill(q)
		}
	}
	for _, q := range a.places {
		if q.volume == p.volume {
			a.gone(q)
			q.startAt = time.Now().Add(d)
		}
	}
}

func (a *arena) kill(p *place) {
	if p.now != nil {
		p.now.killed = true
		p.now.signal(syscall.SIGKILL)
	}
}

func (a *arena) stop(p *place) {
	if p.now != nil && !p.now.stops {
		p.now.stops, p.now.stopSince = true, time.Now()
		p.now.signal(syscall.SIGTERM)
	}
}

// freeze stops a container's slasha-init for a while, as a machine does that is
// moved, and the app too or, as when it alone hangs, not.
func (a *arena) freeze(p *place, d time.Duration, all bool) {
	l := p.now
	if l == nil {
		return
	}
	l.signal(syscall.SIGSTOP)
	if s, ok := l.newest(); ok && all {
		for _, pid := range pids(s) {
			if isChild(pid, l.Cmd.Process.Pid) && syscall.Kill(pid, syscall.SIGSTOP) == nil {
				l.frozen = append(l.frozen, pid)
			}
		}
	}
	p.goOnAt = time.Now().Add(d)
}

// gone waits until the container of a place has ended, and its app with it: that
// has the container's stdout.
func (a *arena) gone(p *place) {
	a.t.Helper()
	if p.now == nil {
		return
	}
	l := p.now
	l.Wait(endWithin)
	a.look(p)
}

// goOn lets a container that is stopped go on.
func (a *arena) goOn(p *place) {
	p.goOnAt = time.Time{}
	if p.now == nil {
		return
	}
	a.logf("%s goes on", p.now.name)
	for _, pid := range p.now.frozen {
		if isChild(pid, p.now.Cmd.Process.Pid) {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	}
	p.now.frozen = nil
	p.now.signal(syscall.SIGCONT)
	if p.now.stops {
		p.now.stopSince = time.Now()
	}
}

func (a *arena) mend(p *place) {
	p.mendAt = time.Time{}
	a.logf("the bucket of %s is back", p.name)
	p.proxy.Heal()
}

// settle lets the time pass, and does what is due: as a platform would, it starts
// again what has ended.
func (a *arena) settle(d time.Duration) {
	a.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(d); ; <-tick.C {
		now := time.Now()
		for _, p := range a.places {
			if !p.goOnAt.IsZero() && now.After(p.goOnAt) {
				a.goOn(p)
			}
			if !p.mendAt.IsZero() && now.After(p.mendAt) {
				a.mend(p)
			}
			if p.now != nil {
				a.look(p)
			} else if !a.ending && now.After(p.startAt) {
				a.start(p)
			}
		}
		if !now.Before(end) {
			return
		}
	}
}

// look finds out whether the container of a place has ended.
func (a *arena) look(p *place) {
	l := p.now
	select {
	case <-l.Done():
		<-l.watched
		l.code = l.Wait(time.Second)
		a.logf("%s has ended, exit %d", l.name, l.code)
		p.now, p.goOnAt = nil, time.Time{}
		p.startAt = time.Now().Add(a.between(20*time.Millisecond, 400*time.Millisecond))
		a.judgeEnd(l)
	default:
		if l.stops && p.goOnAt.IsZero() && time.Since(l.stopSince) > endWithin {
			a.fatalf("%s has not ended %s after SIGTERM", l.name, endWithin)
		}
	}
}
