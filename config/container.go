package config

import (
	"bufio"
	"io"
	"os"
	"regexp"
	"strings"
)

// containerID returns an id that stays the same when this container is restarted, and
// differs for the next container: the engine's id, or the uid of a Kubernetes pod.
// Outside a container it is the host's name.
func containerID() string {
	if f, err := os.Open("/proc/self/mountinfo"); err == nil {
		defer func() { _ = f.Close() }()
		if id := idOfMounts(f); id != "" {
			return id
		}
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "unknown"
	}
	return name
}

// idOfMounts finds the id in mountinfo (proc_pid_mountinfo(5): the fourth field
// is the root of the mount in its file system, the fifth where it is seen), at one
// of the files that engines mount into every container. A pod's uid is preferred to
// the id of a container in it, which changes with each restart.
func idOfMounts(mountinfo io.Reader) string {
	id := regexp.MustCompile(`/(containers|overlay-containers|pods)/([0-9a-f-]{12,64})/`)
	found := ""
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 5 {
			continue
		}
		switch fields[4] {
		case "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/run/.containerenv":
			m := id.FindStringSubmatch(fields[3])
			switch {
			case m != nil && m[1] == "pods":
				return m[2]
			case m != nil && found == "":
				found = m[2]
			}
		}
	}
	return found
}
