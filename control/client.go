package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
)

// Client asks the slasha-init behind a socket.
type Client struct{ Path string }

// Sync returns when everything whose commit returned before the call is in the
// replica. The error says that this is not known; when ctx ends it is ctx's.
func (c Client) Sync(ctx context.Context) (Synced, error) {
	var done Synced
	return done, c.ask(ctx, "/sync", nil, &done)
}

// Restore returns when the app runs again on what was restored. A *Refusal says
// that nothing was done at all.
func (c Client) Restore(ctx context.Context, order Order) (Restored, error) {
	var done Restored
	return done, c.ask(ctx, "/restore", order, &done)
}

func (c Client) ask(ctx context.Context, what string, order, done any) error {
	body, err := json.Marshal(order)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://slasha-init"+what, bytes.NewReader(body))
	if err != nil {
		return err
	}
	client := c.HTTP()
	defer client.CloseIdleConnections()
	resp, err := client.Do(req)
	if err != nil {
		return c.explain(ctx, err)
	}
	defer func() { _ = resp.Body.Close() }()
	dec := json.NewDecoder(io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode == http.StatusOK {
		return dec.Decode(done)
	}
	var told failure
	if err := dec.Decode(&told); err != nil || told.Error == "" {
		told.Error = "the answer was " + resp.Status
	}
	if resp.StatusCode == http.StatusConflict || resp.StatusCode == http.StatusForbidden {
		return &Refusal{told.Error}
	}
	return errors.New(told.Error)
}

// HTTP returns a client for the same socket, whatever host an address names.
func (c Client) HTTP() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			path, release, err := shortened(c.Path)
			if err != nil {
				return nil, err
			}
			defer release()
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		},
	}}
}

// explain says in a sentence why there was no answer.
func (c Client) explain(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no slasha-init runs there: nobody answers on %s", c.Path)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("no permission to ask on %s: only root, slasha-init's own user and the app's may", c.Path)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
		return errors.New("slasha-init ended before it answered")
	}
	return err
}
