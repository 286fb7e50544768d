// Package storage is the only access to a replica: a bucket of an S3-compatible
// service, or a local folder.
//
// Client keeps Litestream's formats (the LTX files of 0.5, the generations of 0.3)
// and our own small objects in a place that knows only files and folders: bucket or
// folder. Every request passes an operation, which ends it when it makes no progress
// and reports its result. transport.go lists the limits on what a bucket may answer, and
// an error becomes one sentence that a person can act on in explain.go.
//
// The package trusts nothing in the process environment: see IsolateEnvironment.
package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path"
	"path/filepath"
	"time"

	"github.com/superfly/ltx"
)

// Config says where a replica lives and with which keys. All fields may be zero but
// Bucket and Prefix, which a bucket needs and a folder does not.
type Config struct {
	Endpoint Endpoint
	Bucket   string
	Prefix   string // folder inside the bucket, without slashes at its ends

	// AccessKeyID and SecretAccessKey are used when both are set; otherwise the
	// AWS SDK's own chain finds credentials.
	AccessKeyID     string
	SecretAccessKey string

	// Region overrides the region in the endpoint's host name. The server's answer
	// overrides both.
	Region string

	// OnResult is called after every operation on the replica with its outcome,
	// from the goroutine that ran it; it must not block. Optional.
	OnResult func(Result)

	Logger *slog.Logger // default: slog.Default()
}

// Result is the outcome of one operation on the replica.
type Result struct {
	Op    string // "check", "list", "read", "write", "delete" or "lease"
	Level int    // LTX level of a write; -1 otherwise
	At    time.Time
	Took  time.Duration
	Err   error // nil: the replica answered as it should
}

// place is where the files of a replica are. A name is a path below the replica's root,
// with slashes. All methods are safe for concurrent use.
//
// Client does the rest for every kind of storage. A new kind implements this interface,
// and besides that it touches:
//
//   - Endpoint and ParseEndpoint (endpoint.go), for how people write its address, and
//     Endpoint.secure if it travels over TLS
//   - Open, which makes the place and its address for people
//   - explain.go: where and host, which name it in sentences, and explain for its own
//     errors; answers.go knows those of S3 alone
//   - Config, and the settings in config/table.go and config/place.go, if it needs other
//     keys; IsolateEnvironment (credentials.go), if its library reads the environment
//   - config/rules.go, where only a local folder needs no --bucket
//   - the limits on its answers (see transport.go), and litestream's package for it in
//     TestLinkedPackages, if it uses that
type place interface {
	// typeName is Litestream's name for this kind of place.
	typeName() string
	// ready makes the other methods usable, and costs nothing once it has succeeded.
	ready(ctx context.Context) error
	// check makes one cheap request that only a working replica answers well.
	check(ctx context.Context) error
	// empty reports whether the place holds nothing but our own objects (see ownFolder).
	empty(ctx context.Context) (bool, error)

	// list returns what is directly in the folder of that name, ordered by name. A
	// folder that does not exist is empty.
	list(name string, want contents) pages
	// open opens the file of that name. The error is os.ErrNotExist if there is none.
	open(ctx context.Context, name string) (io.ReadCloser, error)

	// ltxFolder is the name of the folder with the LTX files of a level.
	ltxFolder(level int) string
	// openLTX opens one LTX file, or size bytes of it from offset; size 0 means all the
	// rest. The error is os.ErrNotExist if there is none.
	openLTX(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error)
	writeLTX(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error)
	// deleteLTX deletes files. A file that does not exist counts as deleted.
	deleteLTX(ctx context.Context, infos []*ltx.FileInfo) error

	// readOwn and writeOwn are ReadOwn and WriteOwn.
	readOwn(ctx context.Context, name string) (Own, error)
	writeOwn(ctx context.Context, name string, data []byte, ifTag string) (tag string, err error)
}

// contents is what a list is to hold.
type contents int

const (
	files      contents = iota // with the time at which each was stored
	datedFiles                 // with the time in each file's LTX header, as far as the place knows it
	folders                    // names alone
)

// pages reads a list, one page after the other, until a page is the last.
type pages interface {
	next(ctx context.Context) (page []entry, last bool, err error)
}

// entry is one file or folder of a list.
type entry struct {
	name string // without the folder's
	size int64
	at   time.Time
}

// Client is a replica. It is safe for concurrent use, and it is a
// litestream.ReplicaClient (and V3) in all respects.
//
// Its methods reach the place through an operation alone: see do, open and list.
type Client struct {
	place place
	cfg   Config
	where string
}

// Open returns the client for the place that cfg names. It makes no request.
func Open(cfg Config) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.Endpoint.IsFile() {
		dir := filepath.Join(cfg.Endpoint.Dir, cfg.Bucket, filepath.FromSlash(cfg.Prefix))
		return &Client{place: newFolder(dir), cfg: cfg, where: "file://" + dir}, nil
	}
	if cfg.Bucket == "" {
		return nil, errors.New("storage: a replica in an S3-compatible service needs a bucket")
	}
	if cfg.Endpoint.secure() {
		fallbackRoots()
	}
	return &Client{place: newBucket(cfg), cfg: cfg, where: "s3://" + path.Join(cfg.Bucket, cfg.Prefix)}, nil
}

// String returns the replica's address for people: s3://bucket/prefix or
// file:///dir. It holds no secret.
func (c *Client) String() string { return c.where }

// Type returns Litestream's name for the kind of place: "s3" or "file".
func (c *Client) Type() string { return c.place.typeName() }

// SetLogger does nothing: errors go to the caller, and what else there is to log goes to
// the logger of Config.
func (c *Client) SetLogger(*slog.Logger) {}

// Explain turns an error of this client into one sentence.
func (c *Client) Explain(err error) Problem { return explain(err, c.cfg) }

// Init makes the client ready for requests. The other methods do so themselves. It
// reports no success, as it need not have made a request.
func (c *Client) Init(ctx context.Context) error {
	op, err := c.start(ctx, "check", -1, stallAfter)
	if err != nil {
		return err
	}
	op.watch.stop()
	return nil
}

// Check makes one signed request that shows whether the replica exists and lets us in.
// It costs one LIST of one key.
func (c *Client) Check(ctx context.Context) error {
	return c.do(ctx, "check", -1, stallAfter, func(op *operation) error { return c.place.check(op.ctx) })
}

// Empty reports whether the replica exists, lets us in, and holds no backup in any
// format. It is true only when the replica has answered so.
func (c *Client) Empty(ctx context.Context) (empty bool, err error) {
	err = c.do(ctx, "list", -1, stallAfter, func(op *operation) (err error) {
		empty, err = c.place.empty(op.ctx)
		return err
	})
	return empty && err == nil, err
}

// LTXFiles lists the files of one level in TXID order, beginning with the first whose
// MinTXID is at least seek. With useMetadata the files' times are those of their LTX
// headers, as far as the place knows them, which costs one HEAD a file in a bucket;
// without, they are the times of the uploads. The list is read, and can fail, while the
// caller iterates.
func (c *Client) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	want := files
	if useMetadata {
		want = datedFiles
	}
	list, err := c.list(ctx, c.place.ltxFolder(level), want)
	if err != nil {
		return nil, err
	}
	return &ltxFiles{list: list, level: level, seek: seek}, nil
}

// OpenLTXFile opens one file, or size bytes of it from offset; size 0 means all the
// rest. The error is os.ErrNotExist if the file does not exist.
func (c *Client) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	return c.open(ctx, func(ctx context.Context) (io.ReadCloser, error) {
		return c.place.openLTX(ctx, level, minTXID, maxTXID, offset, size)
	})
}

// WriteLTXFile uploads one file. A seekable r goes to the uploader as it is: a wrapped
// one would lose its size, and the seeking that retries need.
func (c *Client) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (info *ltx.FileInfo, err error) {
	err = c.do(ctx, "write", level, uploadTime(r), func(op *operation) (err error) {
		body := r
		if _, sized := r.(io.ReadSeeker); !sized {
			body = &stream{Reader: r, watch: op.watch} // of unknown size: any progress counts
		}
		info, err = c.place.writeLTX(op.ctx, level, minTXID, maxTXID, body)
		return err
	})
	return info, err
}

// DeleteLTXFiles deletes files. A file that does not exist counts as deleted.
func (c *Client) DeleteLTXFiles(ctx context.Context, infos []*ltx.FileInfo) error {
	if len(infos) == 0 {
		return nil
	}
	patience := stallAfter + time.Duration(len(infos))*10*time.Millisecond
	return c.do(ctx, "delete", -1, patience, func(op *operation) error { return c.place.deleteLTX(op.ctx, infos) })
}

// DeleteAll fails: Litestream's own would also delete what version 0.3 left behind, and
// this program never wants to delete a replica.
func (c *Client) DeleteAll(context.Context) error {
	return errors.New("storage: deleting a whole replica is not supported")
}

// ltxFiles is the list of one level.
type ltxFiles struct {
	list  *list
	level int
	seek  ltx.TXID

	page []entry // what is left of it
	item *ltx.FileInfo
}

func (f *ltxFiles) Next() bool {
	for {
		if len(f.page) == 0 {
			page, more := f.list.next()
			if !more {
				return false
			}
			f.page = page
			continue
		}
		e := f.page[0]
		f.page = f.page[1:]
		minTXID, maxTXID, err := ltx.ParseFilename(e.name)
		if err != nil || minTXID < f.seek {
			continue
		}
		f.item = &ltx.FileInfo{Level: f.level, MinTXID: minTXID, MaxTXID: maxTXID, Size: e.size, CreatedAt: e.at.UTC()}
		return true
	}
}

func (f *ltxFiles) Item() *ltx.FileInfo { return f.item }
func (f *ltxFiles) Err() error          { return f.list.err }

func (f *ltxFiles) Close() error {
	f.page = nil
	return f.list.close()
}

// headerTime reads the time out of an LTX header, and nothing beyond the header.
func headerTime(r io.Reader) (time.Time, error) {
	h, _, err := ltx.PeekHeader(r)
	if err != nil {
		return time.Time{}, fmt.Errorf("extract timestamp from LTX header: %w", err)
	}
	return time.UnixMilli(h.Timestamp).UTC(), nil
}
