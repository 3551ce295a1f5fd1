//go:build linux

package main

import (
	"bufio"
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	gateway "campus-gateway"

	"github.com/klauspost/compress/zstd"
	_ "modernc.org/sqlite"
)

// device is an ext4 file system on a loop device, which nobody else writes to.
type device struct {
	mount string
	stat  string // the kernel's counters
}

func newDevice(dir string) (*device, error) {
	image, mount := filepath.Join(dir, "image"), filepath.Join(dir, "mount")
	if err := os.Mkdir(mount, 0o700); err != nil {
		return nil, err
	}
	for _, args := range [][]string{
		{"truncate", "-s", "1G", image},
		// All is written now: what the kernel would do later is not the log's.
		{"mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image},
		{"mount", "-o", "loop,noatime", image, mount},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%s: %w: %s", args[0], err, bytes.TrimSpace(out))
		}
	}
	d := &device{mount: mount}
	var s syscall.Stat_t
	if err := syscall.Stat(mount, &s); err != nil {
		d.close()
		return nil, err
	}
	d.stat = fmt.Sprintf("/sys/dev/block/%d:%d/stat", s.Dev>>8&0xfff, s.Dev&0xff|s.Dev>>12&^0xff)
	if _, err := d.written(); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// written is the number of bytes written to the device so far, with all that
// waited in memory; 0 without a device.
func (d *device) written() (int64, error) {
	if d == nil {
		return 0, nil
	}
	if out, err := exec.Command("sync", "-f", d.mount).CombinedOutput(); err != nil {
		return 0, fmt.Errorf("sync: %w: %s", err, out)
	}
	b, err := os.ReadFile(d.stat)
	if err != nil {
		return 0, err
	}
	const sectorsWritten = 6 // of 512 bytes; Documentation/block/stat.rst
	f := strings.Fields(string(b))
	if len(f) <= sectorsWritten {
		return 0, fmt.Errorf("%s: %q", d.stat, b)
	}
	n, err := strconv.ParseInt(f[sectorsWritten], 10, 64)
	return n * 512, err
}

// close unmounts it, if need be as soon as the last file is closed.
func (d *device) close() {
	if d != nil {
		_ = exec.Command("umount", "-l", d.mount).Run()
	}
}

// dropCache makes the next read of a folder's files go to the disk.
func dropCache(dir string) error {
	if out, err := exec.Command("sync", "-f", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("sync: %w: %s", err, out)
	}
	if os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0) == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		// GNU dd asks the kernel to forget the file (POSIX_FADV_DONTNEED).
		return exec.Command("dd", "if="+path, "iflag=nocache", "count=0", "status=none").Run()
	})
}

// counter reads a number of this process from the kernel, in the file's unit.
func counter(file, name string) (int64, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			return strconv.ParseInt(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, name)
}

// memory is VmRSS or VmHWM, in bytes.
func memory(name string) (int64, error) {
	n, err := counter("/proc/self/status", name)
	return n << 10, err
}

// series is one quantity in one place: it drifts, and its sensor is noisy.
type series struct {
	quantity     gateway.Quantity
	value        float64
	drift, noise float64 // standard deviations, a reading
	decimals     float64 // 10^n
}

func (s *series) next(rng *rand.Rand) gateway.Value {
	s.value += s.drift * rng.NormFloat64()
	return gateway.Value{Quantity: s.quantity, V: math.Round((s.value+s.noise*rng.NormFloat64())*s.decimals) / s.decimals}
}

var (
	epoch  = time.Date(2026, 11, 25, 9, 0, 0, 0, time.UTC)
	booted = epoch.Add(-41*time.Hour - 271828183*time.Nanosecond)
)

const boot = "6b1b3b0e-3d2c-4d55-9d5e-2f0d1c0a7e41"

// stamp is a time some milliseconds late, as a poller's is.
func stamp(rng *rand.Rand, at time.Time) gateway.Stamp {
	at = at.Add(time.Duration(math.Abs(rng.NormFloat64()) * 1.5 * float64(time.Millisecond)))
	return gateway.Stamp{Wall: at, Boot: boot, Since: at.Sub(booted), Synced: true}
}

// campus is the general workload: 50 devices of 8 attributes in turn, every 10 s,
// one value a reading.
type campus struct {
	rng     *rand.Rand
	devices [50][8]series
	n       int
}

func newCampus() *campus {
	c := &campus{rng: rand.New(rand.NewPCG(1, 50))}
	for i := range c.devices {
		x := c.rng.Float64()
		c.devices[i] = [8]series{
			{gateway.Temperature, 19 + 4*x, 0.01, 0.01, 100},
			{gateway.Humidity, 35 + 20*x, 0.03, 0.05, 100},
			{gateway.Pressure, 97000 + 400*x, 1, 1.3, 10},
			{gateway.CO2, 450 + 600*x, 4, 8, 1},
			{gateway.PM25, 4 + 9*x, 0.1, 0.4, 10},
			{gateway.Illuminance, 200 + 300*x, 1, 2, 10},
			{gateway.NoiseLevel, 38 + 9*x, 0.3, 1, 10},
			{gateway.Voltage, 3.2 + 0.1*x, 0.0005, 0.002, 1000},
		}
	}
	return c
}

func (c *campus) next() gateway.Reading {
	device, attribute := c.n/8%50, c.n%8
	at := stamp(c.rng, epoch.Add(time.Duration(c.n/8)*200*time.Millisecond+time.Duration(attribute)*3*time.Millisecond))
	c.n++
	return gateway.Reading{Sensor: "room-" + strconv.Itoa(100+device), At: at, Values: []gateway.Value{c.devices[device][attribute].next(c.rng)}}
}

func (c *campus) batches(count, n int) [][]gateway.Reading {
	all := make([][]gateway.Reading, count)
	for i := range all {
		for range n {
			all[i] = append(all[i], c.next())
		}
	}
	return all
}

// climate is a building's BME280s, polled every 10 s, each at its own moment;
// rounded as the driver does, with the noise of the datasheet (rev. 1.23, tables
// 2 and 3, no filter).
type climate struct {
	rng     *rand.Rand
	sensors [][3]series
	n       int
}

func newClimate(sensors int) *climate {
	c := &climate{rng: rand.New(rand.NewPCG(2, 280)), sensors: make([][3]series, sensors)}
	for i := range c.sensors {
		x := c.rng.Float64()
		c.sensors[i] = [3]series{
			{gateway.Temperature, 19 + 4*x, 0.003, 0.005, 100},
			{gateway.Humidity, 35 + 20*x, 0.01, 0.02, 100},
			{gateway.Pressure, 97000 + 400*x, 0.5, 1.3, 10},
		}
	}
	return c
}

func (c *climate) next() gateway.Reading {
	i := c.n % len(c.sensors)
	at := epoch.Add(time.Duration(c.n) * 10 * time.Second / time.Duration(len(c.sensors)))
	c.n++
	r := gateway.Reading{Sensor: "climate-" + strconv.Itoa(100+i), At: stamp(c.rng, at)}
	for q := range c.sensors[i] {
		r.Values = append(r.Values, c.sensors[i][q].next(c.rng))
	}
	return r
}

// jsonReading is all that a reading holds, as others would keep it: about 182 bytes.
type jsonReading struct {
	Sensor string    `json:"sensor"`
	Time   time.Time `json:"time"`
	Boot   string    `json:"boot"`
	Since  float64   `json:"since"`
	Synced bool      `json:"synced"`
	Values []struct {
		Quantity string  `json:"quantity"`
		Value    float64 `json:"value"`
	} `json:"values"`
}

func appendJSON(b []byte, r gateway.Reading) []byte {
	b = fmt.Appendf(b, `{"sensor":%q,"time":"%s","boot":%q,"since":%.3f,"synced":%t,"values":[`,
		r.Sensor, r.At.Wall.Format("2006-01-02T15:04:05.000Z"), r.At.Boot, r.At.Since.Seconds(), r.At.Synced)
	for i, v := range r.Values {
		if i > 0 {
			b = append(b, ',')
		}
		b = fmt.Appendf(b, `{"quantity":%q,"value":%v}`, v.Quantity, v.V)
	}
	return append(b, "]}\n"...)
}

// zeroed is the least that a disk can be asked for: a file that has its size
// already, and one fdatasync a commit.
type zeroed struct {
	*os.File
	bodies [][]byte
	at     int64
}

// newZeroed prepares the commits of batches: JSON lines, packed with zstd.
func newZeroed(path string, batches [][]gateway.Reading) (*zeroed, error) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		return nil, err
	}
	z := &zeroed{}
	size := 0
	for _, batch := range batches {
		var lines []byte
		for _, r := range batch {
			lines = appendJSON(lines, r)
		}
		body := enc.EncodeAll(lines, nil)
		z.bodies = append(z.bodies, body)
		size += len(body)
	}
	if z.File, err = os.Create(path); err != nil {
		return nil, err
	}
	if _, err := z.Write(make([]byte, size)); err != nil {
		return nil, errors.Join(err, z.Close())
	}
	return z, z.Sync()
}

func (z *zeroed) next() error {
	body := z.bodies[0]
	z.bodies = z.bodies[1:]
	if _, err := z.WriteAt(body, z.at); err != nil {
		return err
	}
	z.at += int64(len(body))
	return syscall.Fdatasync(int(z.Fd()))
}

// appendPlain appends each batch of lines to a file, on disk before the next.
func appendPlain(path string, batches [][]byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	for _, b := range batches {
		if _, err := f.Write(b); err != nil {
			return err
		}
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return err
		}
	}
	return f.Close()
}

// drainPlain hands out the file's lines in batches of 1,000, each line its own
// to keep, and has the place it got to on disk at the end, as the log has. With
// decode each is parsed.
func drainPlain(path string, want int, decode bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 64<<10)
	got := 0
	for end := false; !end; {
		batch := make([][]byte, 0, 1000)
		for len(batch) < cap(batch) {
			line, err := r.ReadBytes('\n')
			if err == io.EOF {
				end = true
				break
			} else if err != nil {
				return err
			}
			batch = append(batch, line)
		}
		if decode {
			for _, line := range batch {
				var v jsonReading
				if err := json.Unmarshal(line, &v); err != nil {
					return err
				}
			}
		}
		got += len(batch)
	}
	if got != want {
		return fmt.Errorf("%d lines of %d came back", got, want)
	}
	return appendPlain(path+".place", [][]byte{strconv.AppendInt(nil, int64(got), 10)})
}

// appendSQLite has a row a reading and a transaction a batch.
func appendSQLite(path string, batches [][]byte) error {
	db, err := sql.Open("sqlite", "file:"+path+"?_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)")
	if err != nil {
		return err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	if _, err := db.Exec("CREATE TABLE log (seq INTEGER PRIMARY KEY, reading BLOB NOT NULL)"); err != nil {
		return err
	}
	insert, err := db.Prepare("INSERT INTO log (reading) VALUES (?)")
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, b := range batches {
		tx, err := db.Begin()
		if err != nil {
			return err
		}
		in := tx.Stmt(insert)
		for line := range bytes.Lines(b) {
			if _, err := in.Exec(line); err != nil {
				return errors.Join(err, tx.Rollback())
			}
		}
		if err := tx.Commit(); err != nil {
			return err
		}
	}
	return nil
}

// inMadeUpTime answers from a world in which waiting takes no time, which Go
// grants to tests only: so it ends as a test does, and never returns.
func inMadeUpTime(f func() (any, error)) {
	testing.Main(func(string, string) (bool, error) { return true, nil }, []testing.InternalTest{{Name: "bench", F: func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			answer, err := f()
			if err = errors.Join(err, json.NewEncoder(os.Stdout).Encode(answer)); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				t.Fail()
			}
		})
	}}}, nil, nil)
}
