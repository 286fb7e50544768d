// Package volume is what the instances on one volume agree on, by locks in our folder
// beside the database (see Folder):
//
//	web     one web process at a time: SQLite has one writer, and deploys overlap
//	lead    who restores and replicates the database
//	follow  shared by those who use the database and do not lead
//
// The first instance leads. While it replaces the database, it holds follow alone. A
// second web process waits for the first to leave. Every other process type, and a web
// process beside an instance that leads, follows: it waits for the database, and leaves
// the rest to the leader until that is gone.
package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// The locks, by the names of their files.
const (
	webLock    = "web.lock"
	leadLock   = "lead.lock"
	followLock = "follow.lock"
)

// Config is what a Volume needs. Only DBPath is required.
type Config struct {
	// DBPath is the absolute path of the database.
	DBPath string

	// Who is what other instances read about this one. The default is Who(), as of New.
	Who string

	Logger *slog.Logger
}

// Volume is the place of a database that several instances may use.
type Volume struct {
	cfg      Config
	folder   Folder
	warnOnce sync.Once
}

// New returns the volume of the database at cfg.DBPath. It makes nothing.
func New(cfg Config) *Volume {
	if cfg.Who == "" {
		cfg.Who = Who()
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	return &Volume{cfg: cfg, folder: FolderOf(cfg.DBPath)}
}

// Who describes this process to other instances and to people.
func Who() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return fmt.Sprintf("host %s, pid %d, since %s", host, os.Getpid(), time.Now().UTC().Format(time.RFC3339))
}

// Folder is our folder on the volume.
func (v *Volume) Folder() Folder { return v.folder }

// errNoFolder says that the database's folder does not exist, so there can be no lock.
var errNoFolder = errors.New("the database's folder does not exist")

// try takes a lock alone. The error is a *HeldError when another instance holds it, or
// errNoFolder. Where the volume has no locks, try returns no lock, and warns once.
func (v *Volume) try(name string) (*flock, error) {
	l, err := v.open(name, v.alone)
	switch {
	case isHeld(err):
		return nil, err
	case errors.Is(err, fs.ErrNotExist):
		return nil, errNoFolder
	case err != nil:
		v.warnOnce.Do(func() {
			v.cfg.Logger.Warn("this volume can't be locked, so a second instance on it will go unnoticed", "error", err)
		})
	}
	return l, nil
}

// tryHeld is try for a start, where no folder means that nobody is there yet: the restore
// makes it.
func (v *Volume) tryHeld(name string) (*flock, *HeldError) {
	l, err := v.try(name)
	held, _ := errors.AsType[*HeldError](err)
	return l, held
}

// open takes one of the locks, in our folder, which it makes. An instance that leaves
// removes our folder if it is empty: then open makes it again.
func (v *Volume) open(name string, take func(path string) (*flock, error)) (l *flock, err error) {
	err = fs.ErrNotExist
	for n := 0; errors.Is(err, fs.ErrNotExist) && n < 100; n++ {
		if err = v.folder.Make(); err == nil {
			l, err = take(v.folder.file(name))
		}
	}
	return l, err
}

// alone takes a lock as this instance.
func (v *Volume) alone(path string) (*flock, error) { return lockAlone(path, v.cfg.Who) }

// makeFollowLock makes the file that followers share, as the leader: their user may be
// one that can't make files here.
func (v *Volume) makeFollowLock() {
	f, err := openLock(v.folder.file(followLock))
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		v.cfg.Logger.Debug("the followers' lock", "error", err)
	}
}

// Occupy keeps containers off the volume while a person restores into the place of the
// database, until leave is called. The error is a *HeldError when a container runs. On a
// volume without locks Occupy keeps nobody off.
func (v *Volume) Occupy() (leave func(), err error) {
	if err := MakeFolder(filepath.Dir(v.cfg.DBPath)); err != nil {
		return nil, err
	}
	if err := v.folder.Make(); err != nil {
		return nil, err
	}
	l, err := v.open(leadLock, lockForPerson)
	if isHeld(err) {
		return nil, err
	}
	return func() {
		l.release()
		v.folder.removeEmpty()
	}, nil
}
