package supervisor

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"
	"syscall"
)

// User is whom processes run as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
	name     string   // as the setting names it
}

// String returns the user as the setting names it.
func (u *User) String() string { return u.name }

func (u *User) credential() *syscall.Credential {
	return &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups, NoSetGroups: u.isSelf()}
}

// isSelf reports whether we are this user already; then nothing has to be set,
// and somebody who is not root can ask for it.
func (u *User) isSelf() bool {
	return os.Getuid() == int(u.UID) && os.Getgid() == int(u.GID) && os.Getuid() != 0
}

// LookupUser reads "name", "uid", "name:group" or "uid:gid" as docker run --user
// does. Names need /etc/passwd and /etc/group; numbers do not. A user that is
// in /etc/passwd has the group of that line and the supplementary groups of
// /etc/group, unless a group is named. A uid that is not there has group 0, as
// in a container of an arbitrary user. The error is a sentence about the words,
// without them.
func LookupUser(words string) (*User, error) {
	who, group, hasGroup := strings.Cut(words, ":")
	u := &User{name: words}
	entry, uid, err := lookup(who)
	if err != nil {
		return nil, err
	}
	u.UID = uid
	switch {
	case hasGroup:
		if u.GID, err = lookupGroup(group); err != nil {
			return nil, err
		}
	case entry != nil:
		if u.GID, err = number(entry.Gid); err != nil {
			return nil, fmt.Errorf("has the group %q in /etc/passwd, which is not a number", entry.Gid)
		}
		ids, err := entry.GroupIds()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("has groups that can't be read: %w", err)
		}
		for _, id := range ids {
			if gid, err := number(id); err == nil {
				u.Groups = append(u.Groups, gid)
			}
		}
	}
	if !hasGroup && entry == nil && os.Getuid() == int(u.UID) {
		u.GID = uint32(os.Getgid())
	}
	if os.Getuid() != 0 && !u.isSelf() {
		return nil, fmt.Errorf("needs root, but slasha-init runs as uid %d; leave it out, or start the container as root", os.Getuid())
	}
	return u, nil
}

// lookup finds a user; one that is given by its number need not have an entry.
func lookup(who string) (*user.User, uint32, error) {
	uid, err := number(who)
	if err == nil {
		entry, err := user.LookupId(who)
		if err != nil {
			entry = nil
		}
		return entry, uid, nil
	}
	if isNumeral(who) || who == "" {
		return nil, 0, errors.New("is not a user; write a name, a uid from 0 to 4294967294, or uid:gid")
	}
	entry, err := user.Lookup(who)
	var unknown user.UnknownUserError
	switch {
	case errors.As(err, &unknown):
		return nil, 0, errors.New("is not in this image's /etc/passwd; write a user that is, or a number")
	case err != nil:
		return nil, 0, fmt.Errorf("can't be looked up in this image; write a number (%w)", err)
	}
	uid, err = number(entry.Uid)
	return entry, uid, err
}

func lookupGroup(group string) (uint32, error) {
	if gid, err := number(group); err == nil {
		return gid, nil
	}
	if isNumeral(group) || group == "" {
		return 0, errors.New("has no group behind the colon; write a name, or a gid from 0 to 4294967294")
	}
	entry, err := user.LookupGroup(group)
	var unknown user.UnknownGroupError
	switch {
	case errors.As(err, &unknown):
		return 0, errors.New("has a group that is not in this image's /etc/group; write one that is, or a number")
	case err != nil:
		return 0, fmt.Errorf("has a group that can't be looked up in this image; write a number (%w)", err)
	}
	return number(entry.Gid)
}

// number reads an id. The highest one means "leave it" to the kernel.
func number(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && (n == 1<<32-1 || s != strconv.FormatUint(n, 10)) {
		err = strconv.ErrRange
	}
	return uint32(n), err
}

func isNumeral(s string) bool {
	return strings.Trim(s, "+-0123456789") == ""
}
