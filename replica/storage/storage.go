// Package storage is the one door to a replica: a bucket of an S3-compatible
// service, or a local folder.
//
// It wraps Litestream's own replica clients and adds what they leave open: the
// bucket's region is taken from the server's answer, an operation that makes no
// progress is ended, every result is told to whoever keeps health, and an error
// becomes one sentence that a person can act on.
//
// The package trusts nothing in the process environment: see IsolateEnvironment.
package storage

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"time"

	"github.com/benbjohnson/litestream"
	"github.com/benbjohnson/litestream/file"
	"github.com/superfly/ltx"
)

// Config says where a replica lives and with which keys. All fields but Bucket
// (required unless Endpoint is a folder) and Prefix may be zero.
type Config struct {
	Endpoint Endpoint
	Bucket   string
	Prefix   string // folder inside the bucket, without slashes at its ends

	// AccessKeyID and SecretAccessKey are used when both are set; otherwise the
	// AWS SDK's own chain finds credentials.
	AccessKeyID     string
	SecretAccessKey string

	// Region wins over what the endpoint's host tells, and loses to what the
	// server answers.
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

// formats is what Litestream's clients offer: today's LTX files, and the
// generations of version 0.3. Litestream finds the second by a type assertion,
// so a wrapper that hides it makes old replicas look empty.
type formats interface {
	litestream.ReplicaClient
	litestream.ReplicaClientV3
}

// backend is one kind of place.
type backend interface {
	formats
	// check makes one cheap request that only a working replica answers well.
	check(ctx context.Context) error
	// empty reports whether nothing is there but what is ours (see OwnFolder).
	empty(ctx context.Context) (bool, error)
	// readOwn and writeOwn are ReadOwn and WriteOwn.
	readOwn(ctx context.Context, name string) (Own, error)
	writeOwn(ctx context.Context, name string, data []byte, ifTag string) (tag string, err error)
}

// OwnFolder is the folder of a replica that Litestream knows nothing of. It
// sorts behind all of Litestream's: the levels 0000 to 0009, and generations.
const OwnFolder = "slasha"

// Client is a replica. It is safe for concurrent use, and it is a
// litestream.ReplicaClient (and V3) in all respects.
type Client struct {
	backend
	cfg   Config
	where string
}

// Open returns the client for the place that cfg names. It makes no request.
func Open(cfg Config) (*Client, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	c := &Client{cfg: cfg}
	if cfg.Endpoint.IsFile() {
		dir := filepath.Join(cfg.Endpoint.Dir, cfg.Bucket, filepath.FromSlash(cfg.Prefix))
		c.backend = &folder{ReplicaClient: file.NewReplicaClient(dir), root: dir}
		c.where = "file://" + dir
		return c, nil
	}
	if cfg.Endpoint.HTTPS() {
		fallbackRoots()
	}
	s3, err := newBucket(cfg)
	if err != nil {
		return nil, err
	}
	c.backend = s3
	c.where = "s3://" + path.Join(cfg.Bucket, cfg.Prefix)
	return c, nil
}

// String returns the replica's address for people: s3://bucket/prefix or
// file:///dir. It holds no secret.
func (c *Client) String() string { return c.where }

// Check makes one signed request that tells whether the replica is there and
// lets us in. It costs one LIST of one key.
func (c *Client) Check(ctx context.Context) error {
	ctx, watch := watchdog(ctx, stallAfter)
	defer watch.stop()
	start := time.Now()
	err := c.Init(ctx)
	if err == nil {
		err = c.check(ctx)
	}
	return c.done("check", -1, start, watch.cause(ctx, err))
}

// Empty reports whether the replica is there, lets us in, and holds no backup in
// any format. It is true only when the replica has answered so.
func (c *Client) Empty(ctx context.Context) (bool, error) {
	ctx, watch := watchdog(ctx, stallAfter)
	defer watch.stop()
	start := time.Now()
	err := c.Init(ctx)
	var empty bool
	if err == nil {
		empty, err = c.empty(ctx)
	}
	return empty && err == nil, c.done("list", -1, start, watch.cause(ctx, err))
}

// Explain turns an error of this client into one sentence.
func (c *Client) Explain(err error) Problem { return explain(err, c.cfg) }

// LTXFiles lists the files of one level in TXID order. The request is lazy: it
// is made, and can fail, while the iterator is read.
func (c *Client) LTXFiles(ctx context.Context, level int, seek ltx.TXID, useMetadata bool) (ltx.FileIterator, error) {
	ctx, watch := watchdog(ctx, stallAfter)
	start := time.Now()
	err := c.Init(ctx)
	if err != nil {
		watch.stop()
		return nil, c.done("list", -1, start, watch.cause(ctx, err))
	}
	itr, err := c.backend.LTXFiles(ctx, level, seek, useMetadata)
	watch.pause()
	if err != nil {
		watch.stop()
		return nil, c.done("list", -1, start, watch.cause(ctx, err))
	}
	return &iterator{FileIterator: itr, ctx: ctx, client: c, watch: watch, start: start}, nil
}

// OpenLTXFile opens one file, or size bytes of it from offset. It returns an
// error that is os.ErrNotExist when the file is not there.
func (c *Client) OpenLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	ctx, watch := watchdog(ctx, stallAfter)
	start := time.Now()
	err := c.Init(ctx)
	var rc io.ReadCloser
	if err == nil {
		rc, err = c.backend.OpenLTXFile(ctx, level, minTXID, maxTXID, offset, size)
	}
	watch.pause()
	if err != nil {
		watch.stop()
		return nil, c.done("read", -1, start, watch.cause(ctx, err))
	}
	_ = c.done("read", -1, start, nil)
	return &body{ReadCloser: rc, ctx: ctx, watch: watch}, nil
}

// WriteLTXFile uploads one file. r goes to Litestream's client as it is: a
// wrapped reader would lose the size and the seeking that retries need.
func (c *Client) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	ctx, watch := watchdog(ctx, uploadTime(r))
	defer watch.stop()
	start := time.Now()
	err := c.Init(ctx)
	var info *ltx.FileInfo
	if err == nil {
		if _, sized := r.(io.ReadSeeker); !sized {
			r = &stream{Reader: r, watch: watch} // unknown size: any progress will do
		}
		info, err = c.backend.WriteLTXFile(ctx, level, minTXID, maxTXID, r)
	}
	return info, c.done("write", level, start, watch.cause(ctx, err))
}

// DeleteLTXFiles deletes files. Those that are not there count as deleted.
func (c *Client) DeleteLTXFiles(ctx context.Context, infos []*ltx.FileInfo) error {
	if len(infos) == 0 {
		return nil
	}
	ctx, watch := watchdog(ctx, stallAfter+time.Duration(len(infos))*10*time.Millisecond)
	defer watch.stop()
	start := time.Now()
	err := c.Init(ctx)
	if err == nil {
		err = c.backend.DeleteLTXFiles(ctx, infos)
	}
	return c.done("delete", -1, start, watch.cause(ctx, err))
}

// DeleteAll is refused: Litestream's would also delete what version 0.3 left
// behind, and nothing in this program ever wants a replica gone.
func (c *Client) DeleteAll(context.Context) error {
	return errors.New("storage: deleting a whole replica is not supported")
}

func (c *Client) done(op string, level int, start time.Time, err error) error {
	// The caller's own cancellation says nothing about the replica.
	if c.cfg.OnResult != nil && !errors.Is(err, context.Canceled) {
		now := time.Now()
		res := Result{Op: op, Level: level, At: now, Took: now.Sub(start), Err: err}
		if errors.Is(err, os.ErrNotExist) && op == "read" {
			res.Err = nil // the replica answered: there is no such file
		}
		c.cfg.OnResult(res)
	}
	return err
}
