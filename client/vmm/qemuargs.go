package vmm

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// escape makes a value safe inside a comma-separated QEMU option.
func escape(v string) string { return strings.ReplaceAll(v, ",", ",,") }

// mac derives a network address from a parcel's UUID: always the same, and
// different for different parcels.
func mac(uuid string) string {
	h := sha256.Sum256([]byte("network card of " + uuid))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", h[0], h[1], h[2])
}

// arguments is QEMU's command line for m. guid is the generation identifier the
// guest is shown.
//
// Whatever the guest can see is spelt out and has a fixed place, so that a
// machine resumes on another host with other options: it always has its serial port and its
// network card, whether or not they lead anywhere.
func arguments(m *Machine, p *plan, guid string, incoming bool) []string {
	a := []string{
		"-name", "guest=" + escape(m.Name),
		"-uuid", m.UUID,
		"-no-user-config", "-nodefaults",
		// Core dumps and page merging would let the memory leak to where it is not guarded.
		"-machine", p.machine + ",memory-backend=ram,usb=off,dump-guest-core=off,mem-merge=off",
		// enforce: a missing feature is an error now, not a crash of the guest later. The vendor
		// is the model's own, or KVM would show the host's, which changes from host to host.
		"-cpu", p.cpu + ",enforce,vendor=GenuineIntel",
		"-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", p.cpus, p.cpus),
		"-m", fmt.Sprintf("size=%dM", p.memory/mebibyte),
		// share=off: the machine's writes stay in anonymous memory, at full speed.
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=off", p.memory, escape(m.Memory)),
		"-rtc", "base=utc,clock=host",
		"-boot", "order=c,menu=off",
		// The run state is ours: nothing runs before cont, and a guest's power-off leaves QEMU there to be asked.
		"-S", "-no-shutdown",
	}
	a = append(a, "-accel", p.accel)

	// Disk. Host cache with flushes passed on: a guest's flush is an fsync of the image. An
	// error stops the machine instead of reaching the guest.
	a = append(a,
		"-blockdev", "driver=file,node-name=diskfile,filename="+escape(m.Disk)+",aio=threads,locking=off,discard=unmap,cache.direct=off,cache.no-flush=off",
		"-blockdev", "driver=raw,node-name=disk,file=diskfile,discard=unmap,cache.direct=off,cache.no-flush=off",
		"-device", "virtio-blk-pci,id=blk0,drive=disk,bus=pci.0,addr=0x4,bootindex=0,write-cache=on,werror=stop,rerror=stop",
	)

	// Network. The card stays, so that net= may change between runs. No boot ROM: its size would
	// be part of the machine's state, and differs between QEMU packages.
	netdev := "user,id=net0"
	if p.net == "none" {
		netdev += ",restrict=on" // run sets the link down as well
	}
	a = append(a, "-netdev", netdev, "-device", "virtio-net-pci,id=nic0,netdev=net0,bus=pci.0,addr=0x3,romfile=,mac="+mac(m.UUID))

	serial := "null,id=serial0"
	if path, ok := strings.CutPrefix(p.serial, "file:"); ok {
		serial = "file,id=serial0,append=on,path=" + escape(path)
	} else if path, ok := strings.CutPrefix(p.serial, "unix:"); ok {
		serial = "socket,id=serial0,server=on,wait=off,path=" + escape(path)
	}
	a = append(a, "-chardev", serial, "-device", "isa-serial,id=com1,chardev=serial0,index=0")

	switch p.vga {
	case "std":
		a = append(a, "-device", "VGA,id=vga0,bus=pci.0,addr=0x2,vgamem_mb=16")
	case "virtio":
		a = append(a, "-device", "virtio-vga,id=vga0,bus=pci.0,addr=0x2")
	case "cirrus":
		a = append(a, "-device", "cirrus-vga,id=vga0,bus=pci.0,addr=0x2")
	case "none":
		a = append(a, "-vga", "none")
	}
	a = append(a,
		"-device", "qemu-xhci,id=usb0,bus=pci.0,addr=0x5",
		"-device", "usb-tablet,id=tablet0,bus=usb0.0,port=1",
		"-object", "rng-builtin,id=entropy0",
		"-device", "virtio-rng-pci,id=rng0,rng=entropy0,bus=pci.0,addr=0x6",
		// A new one in every run: the guest must not go on with random numbers
		// that another run of the same version may have used.
		"-device", "vmgenid,id=generation0,guid="+guid,
	)
	full := map[bool]string{true: ",full-screen=on", false: ",full-screen=off"}[m.Fullscreen]
	switch {
	case strings.HasPrefix(p.display, "vnc="):
		a = append(a, "-display", "vnc="+strings.TrimPrefix(p.display, "vnc="))
	case p.display == "window":
		a = append(a, "-display", "vnc=none") // clients come over the control socket
	case p.display == "gtk" || p.display == "sdl":
		a = append(a, "-display", p.display+",window-close=off"+full)
	default:
		a = append(a, "-display", "none")
	}
	if p.facts.Sandbox && p.display != "gtk" && p.display != "sdl" {
		a = append(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
	}
	if incoming {
		a = append(a, "-incoming", "defer")
	}
	return append(a, p.extra...)
}
