package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// listen makes the socket. One that nobody answers on was left by a dead process and
// is replaced; one that somebody answers on stays.
func listen(ctx context.Context, path string) (net.Listener, error) {
	short, release, err := shortened(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", short)
	if errors.Is(err, syscall.EADDRINUSE) {
		var d net.Dialer
		if conn, err := d.DialContext(ctx, "unix", short); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("another slasha-init answers on %s", path)
		}
		if fi, err := os.Lstat(path); err == nil && fi.Mode().Type() != os.ModeSocket {
			return nil, fmt.Errorf("%s exists and is not a socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		l, err = lc.Listen(ctx, "unix", short)
	}
	if err != nil {
		return nil, err
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // it would go by a name that may mean another folder by then
	}
	// Everybody may connect; the handler looks at who it is.
	if err := os.Chmod(path, 0o666); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// longestPath is what sockaddr_un has room for, in bytes; see unix(7).
const longestPath = 107

// shortened returns a path for the same socket that the kernel has room for: one
// through a descriptor of its folder, which is good until release is called.
func shortened(path string) (short string, release func(), err error) {
	if len(path) <= longestPath {
		return path, func() {}, nil
	}
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, fmt.Errorf("open %s: %w", filepath.Dir(path), err)
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path)), func() { _ = unix.Close(dir) }, nil
}

type peerKey struct{}

// withPeer notes which process is at the other end, as the kernel knows it.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	_ = raw.Control(func(fd uintptr) {
		if peer, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			ctx = context.WithValue(ctx, peerKey{}, peer)
		}
	})
	return ctx
}

func peerOf(ctx context.Context) (*unix.Ucred, bool) {
	peer, ok := ctx.Value(peerKey{}).(*unix.Ucred)
	return peer, ok
}
