package storage

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/s3/manager"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	smithyhttp "github.com/aws/smithy-go/transport/http"
	"github.com/superfly/ltx"
	"golang.org/x/sync/errgroup"
)

// What Litestream's s3.ReplicaClient (0.5.18) does with LTX files, so that either client
// reads what the other wrote. TestBothClients and TestBothClientsSendTheSame compare them.

const (
	// timestampKey is the metadata with the time in a file's LTX header, as RFC 3339.
	timestampKey = "litestream-timestamp"

	// mostDeletes is how many objects S3 deletes with one request.
	mostDeletes = 1000

	// mostHeads is how many files of a list are asked for their metadata at the same time.
	mostHeads = 50
)

func (b *bucket) ltxFolder(level int) string { return fmt.Sprintf("%04x", level) }

func (b *bucket) ltxKey(level int, minTXID, maxTXID ltx.TXID) *string {
	return b.key(b.ltxFolder(level) + "/" + ltx.FormatFilename(minTXID, maxTXID))
}

func (b *bucket) openLTX(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, offset, size int64) (io.ReadCloser, error) {
	part := fmt.Sprintf("bytes=%d-", offset)
	if size > 0 {
		part += strconv.FormatInt(offset+size-1, 10)
	}
	return b.get(ctx, &awss3.GetObjectInput{Key: b.ltxKey(level, minTXID, maxTXID), Range: aws.String(part)}, b.quick)
}

// date replaces the times of uploads by those of the LTX headers. A file without one keeps
// the time of its upload, and so does a file that the service does not describe.
func (b *bucket) date(ctx context.Context, folder string, page []entry) error {
	var all errgroup.Group
	all.SetLimit(mostHeads)
	for i := range page {
		all.Go(func() error {
			out, err := b.s3.HeadObject(ctx, &awss3.HeadObjectInput{Bucket: b.name(), Key: aws.String(folder + page[i].name)})
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				return nil //nolint:nilerr // see above
			}
			if at, err := time.Parse(time.RFC3339Nano, out.Metadata[timestampKey]); err == nil {
				page[i].at = at
			}
			return nil
		})
	}
	return all.Wait()
}

// writeLTX makes one PUT of a file that is smaller than a part of a large upload.
func (b *bucket) writeLTX(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	src, err := sourceOf(r, b.uploader.PartSize)
	if err != nil {
		return nil, err
	}
	in := &awss3.PutObjectInput{
		Bucket:   b.name(),
		Key:      b.ltxKey(level, minTXID, maxTXID),
		Body:     src.body,
		Metadata: map[string]string{timestampKey: src.at.Format(time.RFC3339Nano)},
	}
	var tag *string
	if src.small {
		in.ContentLength = aws.Int64(src.size)
		out, err := b.s3.PutObject(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("put %s: %w", *in.Key, err)
		}
		tag = out.ETag
	} else {
		out, err := b.uploader.Upload(ctx, in)
		if err != nil {
			return nil, fmt.Errorf("upload %s: %w", *in.Key, err)
		}
		tag = out.ETag
	}
	if tag == nil {
		return nil, fmt.Errorf("upload %s: %w", *in.Key, errNotS3)
	}
	if counter, ok := src.body.(*counter); ok {
		src.size = counter.n
	}
	return &ltx.FileInfo{Level: level, MinTXID: minTXID, MaxTXID: maxTXID, Size: src.size, CreatedAt: src.at}, nil
}

// source is what an upload sends.
type source struct {
	body  io.Reader
	small bool      // smaller than a part; then body can seek
	size  int64     // 0 until body, a counter, was read
	at    time.Time // of the LTX header
}

// sourceOf looks at the header of what r gives, and at its size. A reader that can seek
// stays the body, so that retries can begin anew and the uploader reads its parts in
// place; of another as much as a part is buffered.
func sourceOf(r io.Reader, part int64) (source, error) {
	if file, ok := r.(io.ReadSeeker); ok {
		if start, err := file.Seek(0, io.SeekCurrent); err == nil {
			return sourceOfFile(file, start, part)
		} // else a pipe, for example, of which nothing was read yet
	}
	var head bytes.Buffer
	_, err := io.CopyN(&head, r, part)
	small := err == io.EOF //nolint:errorlint // an error that wraps io.EOF is no end: the file would be uploaded in part
	if err != nil && !small {
		return source{}, fmt.Errorf("read LTX file: %w", err)
	}
	at, err := headerTime(bytes.NewReader(head.Bytes()))
	if err != nil {
		return source{}, err
	}
	if small {
		return source{body: bytes.NewReader(head.Bytes()), small: true, size: int64(head.Len()), at: at}, nil
	}
	return source{body: &counter{Reader: io.MultiReader(&head, r)}, at: at}, nil
}

func sourceOfFile(file io.ReadSeeker, start, part int64) (source, error) {
	end, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return source{}, fmt.Errorf("size LTX file: %w", err)
	}
	if _, err := file.Seek(start, io.SeekStart); err != nil {
		return source{}, fmt.Errorf("rewind LTX file: %w", err)
	}
	at, err := headerTime(file)
	if err != nil {
		return source{}, err
	}
	if _, err := file.Seek(start, io.SeekStart); err != nil {
		return source{}, fmt.Errorf("rewind LTX file: %w", err)
	}
	return source{body: file, small: end-start < part, size: end - start, at: at}, nil
}

type counter struct {
	io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n += int64(n)
	return n, err
}

// uploads is the client as the uploader sees it.
type uploads struct{ manager.UploadAPIClient }

// CreateMultipartUpload fails without an id for the upload, which the uploader takes for
// granted.
func (u uploads) CreateMultipartUpload(ctx context.Context, in *awss3.CreateMultipartUploadInput, opts ...func(*awss3.Options)) (*awss3.CreateMultipartUploadOutput, error) {
	out, err := u.UploadAPIClient.CreateMultipartUpload(ctx, in, opts...)
	if err == nil && out.UploadId == nil {
		return nil, errNotS3
	}
	return out, err
}

// deleteLTX deletes one by one the files that could not be deleted with others: a service
// may refuse single files of a request that succeeds, and the answer to a request of its
// own says why.
func (b *bucket) deleteLTX(ctx context.Context, infos []*ltx.FileInfo) error {
	for some := range slices.Chunk(infos, mostDeletes) {
		keys := make(map[string]bool, len(some))
		var objects []types.ObjectIdentifier
		for _, info := range some {
			key := b.ltxKey(info.Level, info.MinTXID, info.MaxTXID)
			keys[*key] = true
			objects = append(objects, types.ObjectIdentifier{Key: key})
		}
		out, err := b.s3.DeleteObjects(ctx, &awss3.DeleteObjectsInput{Bucket: b.name(), Delete: &types.Delete{Objects: objects}}, b.withMD5)
		if err != nil {
			return fmt.Errorf("delete %d objects: %w", len(objects), err)
		}
		for _, refused := range out.Errors {
			key := aws.ToString(refused.Key)
			if !keys[key] {
				return fmt.Errorf("%w: it names %q, which was not to be deleted", errNotS3, oneLine(key))
			}
			if _, err := b.s3.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: b.name(), Key: aws.String(key)}, b.quick); err != nil {
				return fmt.Errorf("delete %s: %w", key, err)
			}
		}
	}
	return nil
}

func (b *bucket) withMD5(o *awss3.Options) {
	if b.preset.contentMD5 {
		o.APIOptions = append(o.APIOptions, smithyhttp.AddContentChecksumMiddleware)
	}
}
