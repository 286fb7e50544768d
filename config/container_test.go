package config

import (
	"strings"
	"testing"
)

func TestContainerID(t *testing.T) {
	const (
		docker = "0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f0"
		pod    = "6f9619ff-8b86-d011-b42d-00c04fc964ff"
	)
	for name, c := range map[string]struct{ mounts, want string }{
		"docker": {"22 1 0:3 / /proc rw - proc proc rw\n701 690 254:1 /var/lib/docker/containers/" + docker + "/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda1 rw\n" +
			"702 690 254:1 /var/lib/docker/containers/" + docker + "/hostname /etc/hostname rw - ext4 /dev/vda1 rw", docker},
		"kubernetes": {"701 690 254:1 /lib/containerd/io.containerd.grpc.v1.cri/containers/" + docker + "/hostname /etc/hostname rw - ext4 /dev/vda1 rw\n" +
			"702 690 254:1 /lib/kubelet/pods/" + pod + "/etc-hosts /etc/hosts rw - ext4 /dev/vda1 rw", pod},
		"podman":                  {"701 690 0:25 /containers/storage/overlay-containers/" + docker + "/userdata/hosts /etc/hosts rw - tmpfs tmpfs rw", docker},
		"a volume of another one": {"701 690 254:1 /var/lib/docker/containers/" + docker + "/logs /logs rw - ext4 /dev/vda1 rw", ""},
		"no container":            {"22 1 0:3 / /proc rw - proc proc rw\n\nx", ""},
	} {
		if got := idOfMounts(strings.NewReader(c.mounts)); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
	if containerID() == "" {
		t.Error("none at all")
	}
}
