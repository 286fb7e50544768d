package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/smithy-go"
	"github.com/benbjohnson/litestream/s3"
	"github.com/superfly/ltx"
)

// Litestream's client passes on the SDK's errors, but for two that it makes
// itself out of words. Here they get back what they mean.

// WriteLTXFile tells when an upload seems to succeed with somebody who is no S3
// service: its answer has no ETag. Litestream says so in words alone.
func (b *bucket) WriteLTXFile(ctx context.Context, level int, minTXID, maxTXID ltx.TXID, r io.Reader) (*ltx.FileInfo, error) {
	info, err := b.ReplicaClient.WriteLTXFile(ctx, level, minTXID, maxTXID, r)
	if err != nil && !requested(err) && strings.Contains(err.Error(), "no ETag returned") {
		err = fmt.Errorf("%w: %w", errNotS3, err)
	}
	return info, err
}

// DeleteLTXFiles deletes one by one what could not be deleted with others. Of the
// errors that a service gives for single files Litestream keeps the server's words
// and drops the code; the answer to a request of its own has it.
func (b *bucket) DeleteLTXFiles(ctx context.Context, infos []*ltx.FileInfo) error {
	for some := range slices.Chunk(infos, s3.MaxKeys) {
		err := b.ReplicaClient.DeleteLTXFiles(ctx, some)
		if err != nil && !requested(err) && ctx.Err() == nil {
			err = b.deleteNamed(ctx, some, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// deleteNamed deletes the files that an error names, and returns that error when it
// names none.
func (b *bucket) deleteNamed(ctx context.Context, infos []*ltx.FileInfo, err error) error {
	words, found := err.Error(), false
	for _, info := range infos {
		key := b.key(info.Level, info.MinTXID, info.MaxTXID)
		if !strings.Contains(words, key) {
			continue
		}
		found = true
		if _, err := b.own.DeleteObject(ctx, &awss3.DeleteObjectInput{Bucket: aws.String(b.Bucket), Key: aws.String(key)}); err != nil {
			return err
		}
	}
	if !found {
		return err
	}
	return nil
}

// requested reports whether an error came out of a request.
func requested(err error) bool {
	var op *smithy.OperationError
	return errors.As(err, &op)
}
