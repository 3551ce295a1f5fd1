//go:build hil

package hil

import (
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestProbe(t *testing.T) {
	n := 0
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { n++; time.Sleep(time.Second / 2) }))
	defer srv.Close()
	b := boot(t, "sabrelite")
	port := srv.Listener.Addr().String()[len("127.0.0.1:"):]
	t.Log(b.sh("echo tmp105 0x48 > /sys/bus/i2c/devices/i2c-1/new_device; sleep 1"))
	for _, c := range []float64{23.5, -55, 127.9375} {
		b.heat("kernel", c)
		t.Log(c, b.sh("cat /sys/bus/i2c/devices/1-0048/hwmon/hwmon*/temp1_input"))
	}
	t.Log(b.try("date +%T; for i in 1 2 3 4; do wget -q -O- http://10.0.2.2:"+port+"/x & done; wait; date +%T"))
	t.Log(n)
	begun := time.Now()
	for i := range 300 {
		b.drive(5, i%2 == 0)
	}
	t.Log(time.Since(begun))
	t.Log(b.try("false"))
	b = boot(t, "raspi3b")
	b.heat("other", 12.5)
	t.Log(b.try("i2ctransfer -y 2 w1@0x4a 0 r2"))
	t.Log(b.try("cat /proc/iomem"))
}
