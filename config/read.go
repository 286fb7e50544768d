package config

import (
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/superfly/ltx"

	"github.com/slashacom/slasha-init/supervisor"
)

// The readers of this file are made for a type of value. Each stores what it read where
// to points.

// duration reads more than zero and at most most. It stores the same in each place.
func duration(most time.Duration, to ...func(*Config) *time.Duration) reader {
	return func(r *reading, g given) {
		d, err := time.ParseDuration(g.text)
		switch {
		case err != nil:
			r.wrong(g, "is not a duration; write it with a unit, like 500ms, 10s or 24h")
		case d <= 0:
			r.wrong(g, "must be more than zero")
		case d > most:
			r.wrong(g, fmt.Sprintf("must be at most %s", most))
		}
		for _, place := range to {
			*place(&r.cfg) = d
		}
	}
}

// orNo leaves the setting zero for a word like off, and else reads it with read.
func orNo(read reader) reader {
	return func(r *reading, g given) {
		if !no(g.text) {
			read(r, g)
		}
	}
}

// word reads one of a few words. want says which there are.
func word[T any](want string, words map[string]T, to func(*Config) *T) reader {
	return func(r *reading, g given) {
		v, ok := words[g.text]
		if !ok {
			r.wrong(g, want)
		}
		*to(&r.cfg) = v
	}
}

// moment reads a time in the past, or nothing.
func moment(to func(*Config) *time.Time) reader {
	return func(r *reading, g given) {
		if g.text == "" {
			return
		}
		t, err := time.Parse(time.RFC3339, g.text)
		switch {
		case err != nil:
			r.wrong(g, "is not a time; write it as RFC 3339, like 2026-11-23T05:32:19Z")
		case time.Until(t) > 5*time.Minute: // more than clocks differ by
			r.wrong(g, "lies in the future; leave it out for the newest state")
		}
		*to(&r.cfg) = t
	}
}

// signal reads the name of a signal, or nothing.
func signal(to func(*Config) *syscall.Signal) reader {
	return func(r *reading, g given) {
		if g.text == "" {
			return
		}
		sig, err := supervisor.ParseSignal(g.text)
		if err != nil {
			r.wrong(g, err.Error())
		}
		*to(&r.cfg) = sig
	}
}

// yesOrNo reads what is on or off.
func yesOrNo(to func(*Config) *bool) reader {
	return func(r *reading, g given) {
		if !yes(g.text) && !no(g.text) {
			r.wrong(g, "must be true or false")
		}
		*to(&r.cfg) = yes(g.text)
	}
}

func yes(word string) bool { return isOneOf(word, "true", "1", "yes", "on") }

func no(word string) bool { return isOneOf(word, "", "false", "0", "no", "off") }

func isOneOf(word string, words ...string) bool {
	for _, w := range words {
		if strings.EqualFold(word, w) {
			return true
		}
	}
	return false
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// Each of the readers below is for one setting that needs more than its type.

func readTTL(r *reading, g given) {
	ttl := &r.cfg.Replica.TTL
	duration(time.Hour, func(c *Config) *time.Duration { return &c.Replica.TTL })(r, g)
	if *ttl > 0 && *ttl < shortestTTL {
		r.wrong(g, fmt.Sprintf("must be at least %s: a renewal is a request, and may have to be made again", shortestTTL))
	}
}

// readRequest reads which restore over the existing database is requested. "true" is a
// request of this container; everything else is the requester's own name for it.
func readRequest(r *reading, g given) {
	switch {
	case no(g.text):
	case len(g.text) > 128 || strings.ContainsFunc(g.text, isControl):
		r.wrong(g, "is neither true nor false nor the id of a request: at most 128 printable characters")
	case strings.EqualFold(g.text, "true"):
		r.cfg.Restore.Request = "true in " + containerID()
	default:
		r.cfg.Restore.Request = "id " + g.text
	}
}

func readTXID(r *reading, g given) {
	if g.text == "" {
		return
	}
	txid, err := ltx.ParseTXID(g.text)
	if err != nil || txid == 0 {
		r.wrong(g, "is not a transaction id; write it as 16 hex digits, like 00000000000003e8")
	}
	r.cfg.Ask.TXID = txid
}
