package replicate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// How a session ends. What is dropped is what was captured of the database. Before that,
// it is noted what the database goes on from (Line.Drop): else its next uploads could
// not be told from somebody else's.
//
//	way          caller       when                       uploads       drops      notes that first
//	abandon      follow       the app replaced the file  no            yes        yes
//	dropBacklog  mend         no room until it works     no            yes        yes (abandon)
//	beginAnew    mend         it can't be uploaded       no            yes        yes (abandon)
//	endAfterBug  guarded      a panic                    no            no, (*)    no
//	endUploaded  Finish       the last upload is made    what is left  no         no
//	Release      main         the last upload failed     no            no         no
//	close        openSession  it could not begin         no            no         no
//
// (*) unless abandon had begun to: then the next session does.
//
// A session that begins drops what one before it has left to drop (begin), and what it
// can't go on from itself (dropEarlier, which notes that first).

// handover is what a session that ends leaves to the next one.
type handover struct {
	anew    bool      // what follows is not the continuation of what was captured before
	dropped bool      // what was captured was dropped for want of room, and no snapshot has been uploaded since
	unsure  time.Time // commits are pending: as session.unsure
}

// abandon ends the session of a database that can't be replicated as it is any more,
// and drops what was captured of it and not uploaded. The session goes on until it is
// noted what the database goes on from.
func (r *Replicator) abandon(ctx context.Context, s *session, forRoom bool) (err error) {
	if err := s.noteDropping(); err != nil {
		return err
	}
	r.compactable.put(nil)
	left, err := s.endDropping(ctx, forRoom) // after a panic in it, the session is still there for endAfterBug
	r.session, r.left = nil, left
	return err
}

// dropBacklog abandons a session whose backlog takes too much room.
func (r *Replicator) dropBacklog(ctx context.Context, s *session, why string) error {
	r.cfg.Logger.Error("dropping the backlog that can't be uploaded: a fresh snapshot follows when the replica is back", "because", why)
	return r.abandon(ctx, s, true)
}

// beginAnew abandons a session that can't get over an error, without a rest before the
// next.
func (r *Replicator) beginAnew(ctx context.Context, s *session, err error) error {
	if errors.Is(err, errResetUnseen) {
		r.cfg.Logger.Warn(err.Error() + ": replicating from a fresh snapshot")
	} else {
		r.cfg.Logger.Warn("what was captured here no longer continues the replica: replicating from a fresh snapshot", "error", err)
	}
	r.asks.hurry()
	return r.abandon(ctx, s, false)
}

// endAfterBug ends the session after a panic, if there is one. Whatever the library
// holds may be half done; a new session begins.
func (r *Replicator) endAfterBug() {
	if s := r.takeSession(); s != nil {
		var closed bool
		if r.left, closed = s.endAfterBug(); !closed {
			r.leaked = s
		}
	}
}

// endUploaded ends the session after the last upload.
func (r *Replicator) endUploaded(ctx context.Context) { r.takeSession().close(ctx) }

// Release closes a database whose last upload failed, and uploads nothing:
// for a process that goes on, and is going to replicate it again.
func (r *Replicator) Release(ctx context.Context) {
	if s := r.takeSession(); s != nil {
		s.client.gone.Store(true)
		s.close(ctx)
	}
}

// takeSession takes the session, if there is one, away from the loop and from the
// compactions, for the caller to end it.
func (r *Replicator) takeSession() *session {
	s := r.session
	r.session = nil
	r.compactable.put(nil)
	return s
}

// closingReplaced is how long closing a database may take that is abandoned.
const closingReplaced = 5 * time.Second

// endDropping ends the session and drops what was captured and not uploaded, after
// noteDropping. If the app has replaced the file, that would be wrong to upload:
// Litestream reads the WAL by name, so what it captures from now on, and may have
// captured just before, mixes the old file with the new one's WAL. The session has
// ended even if there is an error: then the next one drops the rest.
func (s *session) endDropping(ctx context.Context, forRoom bool) (handover, error) {
	s.ending = true
	s.client.gone.Store(true)
	ctx, cancel := context.WithTimeout(ctx, closingReplaced)
	defer cancel()
	s.close(ctx)
	return handover{anew: true, dropped: forRoom || s.hasDropped(), unsure: s.unsure}, s.removeCaptured()
}

// closingAfterBug is how long endAfterBug waits for a library that had a bug.
const closingAfterBug = 5 * time.Second

// endAfterBug ends the session after a panic, which may have left anything half done.
// Where the database can't be closed, closed is false, and the session must be kept as
// it is for as long as the process lives: to open the file again and close it, or to let
// the collector do that, would drop the locks that it still has on the database.
func (s *session) endAfterBug() (left handover, closed bool) {
	s.client.gone.Store(true)
	done := make(chan bool, 1)
	go func() {
		defer func() { done <- recover() == nil }()
		ctx, cancel := context.WithTimeout(context.Background(), closingAfterBug)
		defer cancel()
		_ = s.store.Close(ctx) // also closes the files when it can't upload
	}()
	select {
	case closed = <-done:
	case <-time.After(2 * closingAfterBug):
	}
	return handover{anew: s.ending, dropped: s.hasDropped(), unsure: s.unsure}, closed
}

// close closes the database. As long as the client is not gone, Litestream tries once
// to upload what it has captured.
func (s *session) close(ctx context.Context) {
	if err := s.store.Close(ctx); err != nil {
		s.cfg.Logger.Debug("closing the database", "error", err)
	}
}

// dropEarlier drops what was captured before the session began and can't be followed by
// what comes next.
func (s *session) dropEarlier() error {
	if err := s.noteDropping(); err != nil {
		return err
	}
	return s.removeCaptured()
}

// noteDropping notes what the database goes on from, before what was captured of it
// is dropped. If the disk has no room even for the note, the newest of the captured
// files is removed first. That is safe also if a crash follows right here: the WAL then
// does not continue the files that are left, and so a snapshot follows.
func (s *session) noteDropping() error {
	err := s.cfg.Line.Drop()
	if errors.Is(err, syscall.ENOSPC) {
		if minTXID, maxTXID, listErr := s.db.MaxLTX(); listErr == nil && maxTXID != 0 {
			if removeErr := os.Remove(s.db.LTXPath(0, minTXID, maxTXID)); removeErr != nil {
				err = errors.Join(err, removeErr)
			} else {
				err = s.cfg.Line.Drop()
			}
		}
	}
	if err != nil {
		return fmt.Errorf("note what the database goes on from: %w", err)
	}
	return nil
}

// removeCaptured removes what was captured of the database, after noteDropping.
func (s *session) removeCaptured() error {
	if err := os.RemoveAll(s.db.LTXDir()); err != nil {
		return fmt.Errorf("drop what was captured before: %w", err)
	}
	return nil
}
