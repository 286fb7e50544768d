package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/superfly/ltx"
)

// capture reads what the WAL has, and returns the newest transaction captured, 0 as
// long as there is no database.
func (s *session) capture(ctx context.Context) (ltx.TXID, error) {
	if err := s.db.Sync(ctx); err != nil {
		return 0, fmt.Errorf("capture: %w", err)
	}
	pos, err := s.db.Pos()
	if err != nil {
		return 0, fmt.Errorf("capture: %w", err)
	}
	if pos.IsZero() {
		return 0, nil
	}
	if !s.resumed.followed(s.db, s.cfg.DBPath, pos.TXID) {
		return 0, errResetUnseen
	}
	s.resumed = resumed{} // this capture follows it, and Litestream has its read transaction now
	if s.baseline != "" && s.baseline != s.db.LTXPath(0, pos.TXID, pos.TXID) {
		// The baseline only stood for the replica's newest, and has done its work.
		if err := os.Remove(s.baseline); err != nil && !errors.Is(err, os.ErrNotExist) {
			return 0, fmt.Errorf("capture: %w", err)
		}
		s.baseline = ""
	}
	return pos.TXID, nil
}

// begun reports whether something has been captured, so that compactions may begin.
func (s *session) begun() bool { return s.baseline == "" }

// outcome is what an upload has shown.
type outcome struct {
	news     bool      // the replica has answered, and what follows is known
	uploaded bool      // the replica has taken something
	upTo     time.Time // everything whose commit returned before is in the replica
}

// upload uploads what was captured from a WAL that was read after a moment.
func (s *session) upload(ctx context.Context, before time.Time) (outcome, error) {
	acks := s.client.n.Load()
	if err := s.db.Replica.Sync(ctx); err != nil {
		s.unsure = before
		return outcome{}, fmt.Errorf("upload: %w", err)
	}
	if s.anchor {
		if _, err := s.db.Snapshot(ctx); err != nil {
			return outcome{}, fmt.Errorf("upload snapshot: %w", err)
		}
		s.anchor = false
		if err := s.cfg.Line.Anchored(); err != nil {
			s.cfg.Logger.Warn("the next start will upload a snapshot that is there already", "error", err)
		}
	}
	got := outcome{news: true, upTo: before}
	switch {
	case s.client.n.Load() > acks:
		got.uploaded = true
	case !s.unsure.IsZero(): // the replica's list has shown that nothing is missing
		got.upTo = s.unsure
	case s.synced:
		return outcome{}, nil
	default:
		// A start that found nothing to upload: the replica was complete when its
		// newest file was written. The server's clock may be ahead of ours; the
		// promise is about ours.
		newest, err := s.db.Replica.MaxLTXFileInfo(ctx, 0)
		if err != nil {
			return outcome{}, fmt.Errorf("list replica: %w", err)
		}
		if newest.CreatedAt.Before(before) {
			got.upTo = newest.CreatedAt
		}
	}
	s.synced, s.unsure = true, time.Time{}
	return got, nil
}
