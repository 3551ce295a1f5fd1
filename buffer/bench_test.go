package buffer

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// record is about 180 bytes, as a reading in JSON would be.
func benchRecords(n int) (rs []string) {
	for i := range n {
		rs = append(rs, fmt.Sprintf(`{"sensor":"room-%d","time":"2026-11-25T09:%02d:%02d.%03dZ","temperature":%.2f,"relativeHumidity":%.3f,"atmosphericPressure":%.1f,"unit":"CEL","device":"urn:ngsi-ld:Device:gw-a101"}`,
			i%50, i/60%60, i%60, i%1000, 20+float64(i%97)/13, 0.4+float64(i%89)/991, 970+float64(i%53)/11))
	}
	return rs
}

// BenchmarkAppend writes a backlog of 1,000 records a commit, each on disk before
// the next, and as much to a plain file with a sync each. "of-plain" is the ratio
// of the two rates in this run (1: as fast).
func BenchmarkAppend(b *testing.B) {
	rs := benchRecords(1000)
	l, _ := open(b, b.TempDir(), Options{MaxSize: 1 << 30})
	defer l.Close()
	f, err := os.Create(filepath.Join(b.TempDir(), "plain"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var ours, plain time.Duration
	for b.Loop() {
		t := time.Now()
		if err := l.Put(rs...); err != nil {
			b.Fatal(err)
		}
		ours += time.Since(t)
		t = time.Now()
		body, _ := words{}.Append(nil, rs)
		if _, err := f.Write(body); err != nil {
			b.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			b.Fatal(err)
		}
		plain += time.Since(t)
	}
	b.ReportMetric(plain.Seconds()/ours.Seconds(), "of-plain")
	b.ReportMetric(float64(b.N)*1000/ours.Seconds(), "records/s")
}

// BenchmarkDrain peeks and acknowledges a backlog.
func BenchmarkDrain(b *testing.B) {
	rs := benchRecords(1000)
	l, c := open(b, b.TempDir(), Options{MaxSize: 1 << 30})
	defer l.Close()
	for b.Loop() {
		b.StopTimer()
		for range 10 {
			if err := l.Put(rs...); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
		if n := len(drain(b, c, 500)); n != 10_000 {
			b.Fatal(n)
		}
	}
	b.ReportMetric(float64(b.N)*10_000/b.Elapsed().Seconds(), "records/s")
}
