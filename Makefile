# The campus gateway. Everything here sets up what it needs by itself: Go
# fetches the pinned modules and tools; hil/ installs QEMU on Debian.
# The version is Debian's, too: a tag vX.Y.Z gives X.Y.Z (v1.0.0-rc1: 1.0.0~rc1), any
# other commit 0.0.0+git<its time>.<its hash>.
COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
DIRTY   := $(if $(shell git status --porcelain 2>/dev/null),.dirty)
TAG     := $(shell git describe --tags --exact-match --match 'v[0-9]*' 2>/dev/null | sed 's/^v//; s/-/~/; y/-_/../')
VERSION := $(or $(TAG)$(if $(TAG),$(DIRTY:.%=+%)),0.0.0+git$(shell TZ=UTC git log -1 --format=%cd.%h --abbrev=12 --date=format-local:%Y%m%d%H%M%S 2>/dev/null)$(DIRTY))
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),0)
# The same bytes in any folder, with git or without: the commit is told by the linker.
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -buildid= -X main.version=$(VERSION) -X main.commit=$(COMMIT)'
TARGETS := linux-armv6 linux-armv7 linux-arm64 linux-amd64
ELSEWHERE := windows-amd64 darwin-arm64

SCRIPTS := $(addprefix deploy/raspi/,package postinst prerm postrm guest.sh)

.PHONY: build test race lint cross elsewhere demo hil smoke lifecycle packaged bench torture planted package version reproducible clean $(TARGETS) $(ELSEWHERE)

build: ## the gateway for this machine
	$(GOBUILD) -o build/gateway ./cmd/gateway

test: ## all tests that need nothing but Go
	go test ./...

race: ## the same with the race detector (needs a C compiler), and as a 32-bit program
	go test -race ./...
	GOARCH=386 CGO_ENABLED=0 go test ./...

torture: ## the log: power cuts, kills, damaged files, failing and full disks; some minutes (strace, and root for the full disks)
	TORTURE=full go test -count=1 -timeout 30m -v -run '$(TORTURE)' ./buffer
TORTURE := ^(TestPowerCuts|TestPowerCutsAfterFailedFlushes|TestLiar|TestKills|TestDamagedFiles|TestInjectedErrors|TestSmallDisk|TestBound)$$

planted: ## bugs put in on purpose, and that the tests see each
	.ci/planted

lint: ## formatting, vet, staticcheck, shellcheck where it is installed
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'run gofmt -w on these'; exit 1; }
	go vet ./... && go vet -tags faults ./cmd/gateway && go vet -tags hil ./hil/ ./drivers/bus/ && go vet -tags lifecycle ./deploy/raspi/ && cd buffer/bench && go vet .
	go tool staticcheck ./... && go tool staticcheck -tags lifecycle ./deploy/raspi/
	@if command -v shellcheck >/dev/null; then shellcheck .ci/run .ci/bars .ci/planted .ci/bench .ci/package .ci/reproducible hil/*.sh deploy/raspi/install.sh $(SCRIPTS); else echo 'SKIPPED: shellcheck is not installed'; fi

linux-armv6: export GOARM = 6
linux-armv7: export GOARM = 7
linux-armv6 linux-armv7: export GOARCH = arm
linux-arm64: export GOARCH = arm64
linux-amd64 windows-amd64: export GOARCH = amd64
darwin-arm64: export GOARCH = arm64
$(TARGETS): export GOOS = linux
windows-amd64: export GOOS = windows
windows-amd64: EXE = .exe
darwin-arm64: export GOOS = darwin
$(TARGETS) $(ELSEWHERE):
	$(GOBUILD) -o build/gateway-$@$(EXE) ./cmd/gateway

cross: $(TARGETS) ## static binaries for every Raspberry Pi, and amd64
	@ls -l build/gateway-linux-*

elsewhere: $(ELSEWHERE) ## for a student's laptop (gateway demo): built and vetted, tests too
	GOOS=windows CGO_ENABLED=0 go vet ./...
	GOOS=darwin CGO_ENABLED=0 go vet ./...

demo: build ## the whole job with simulated chips and a broker of its own
	build/gateway demo

hil: ## the ARM builds on virtual boards with a real kernel, I2C and GPIO
	go test -tags hil -count=1 -timeout 20m -v ./hil/

smoke: packaged ## the package on a Debian that boots: from dpkg -i to the first reading (root; Debian)
	go test -tags lifecycle -count=1 -timeout 15m -v -run '^TestSmoke$$' ./deploy/raspi/

lifecycle: packaged ## the package's whole life there: hangs, leaks, power cuts, upgrades, secrets; some minutes
	go test -tags lifecycle -count=1 -timeout 30m -parallel 8 -v ./deploy/raspi/

packaged: # what is here as packages: made unless those of this commit are there
	@$(if $(DIRTY),,ls build/gateway_$(VERSION)_*.deb >/dev/null 2>&1 ||) $(MAKE) package

bench: ## speed and wear, next to alternatives in the same run; fails where a bar is missed (BENCH_REPORT=1: tells only)
	go test -run '^$$' -bench . -benchtime 1s ./...
	.ci/bench
	cd buffer/bench && go run .

package: cross ## .debs, tarballs, bill of materials and checksums; VERSION=1.2.3 names the version
	@VERSION='$(VERSION)' SOURCE_DATE_EPOCH='$(SOURCE_DATE_EPOCH)' deploy/raspi/package

version: ## as the .debs and programs say it
	@echo '$(VERSION)'

reproducible: ## packages the last commit twice, in two folders, and compares every byte
	.ci/reproducible

clean:
	rm -rf build
