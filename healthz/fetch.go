package healthz

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
)

// maxStatus is more than any Status is long, in bytes.
const maxStatus = 1 << 20

// Fetch asks the health page at addr, written as for Listen, for its status. An
// address without a host, or with that of all interfaces, is asked on loopback.
func Fetch(ctx context.Context, addr string) (Status, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return Status{}, fmt.Errorf("healthz: %w", err)
	}
	if ip, err := netip.ParseAddr(host); host == "" || (err == nil && ip.IsUnspecified()) {
		host = "127.0.0.1"
		if err == nil && ip.Is6() && !ip.Is4In6() {
			host = "::1"
		}
	}
	// A transport of its own: HTTP_PROXY is set for the app, not for loopback.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	return FetchBy(ctx, client, net.JoinHostPort(host, port))
}

// FetchBy asks with a client that knows its own way to addr.
func FetchBy(ctx context.Context, client *http.Client, addr string) (Status, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/healthz", http.NoBody)
	if err != nil {
		return Status{}, fmt.Errorf("healthz: %w", err)
	}
	res, err := client.Do(req)
	if err != nil {
		return Status{}, fmt.Errorf("healthz: %w", err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK && res.StatusCode != http.StatusServiceUnavailable {
		return Status{}, fmt.Errorf("healthz: %s answered %s", addr, res.Status)
	}
	var s Status
	if err := json.NewDecoder(io.LimitReader(res.Body, maxStatus)).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("healthz: %s did not answer with a status: %w", addr, err)
	}
	return s, nil
}
