package deployfile

// Config is the grammar of a deploy file: every key there is, with its toml tag.
// Absent is the zero value unless a field says otherwise.
type Config struct {
	App              string  `toml:"app"`
	PrimaryRegion    string  `toml:"primary_region"`
	KillSignal       string  `toml:"kill_signal"`
	KillTimeout      Seconds `toml:"kill_timeout"`
	SwapSizeMB       *int    `toml:"swap_size_mb"`
	ConsoleCommand   string  `toml:"console_command"`
	HostDedicationID string  `toml:"host_dedication_id"`
	MachineConfigRaw any     `toml:"machine_config"`
	Container        string  `toml:"container"`

	Experimental  *Experimental     `toml:"experimental"`
	Build         *Build            `toml:"build"`
	Deploy        *Deploy           `toml:"deploy"`
	Env           map[string]Text   `toml:"env"`
	Processes     map[string]string `toml:"processes"`
	Mounts        []Mount           `toml:"mounts"`
	HTTPService   *HTTPService      `toml:"http_service"`
	Services      []Service         `toml:"services"`
	Checks        map[string]Check  `toml:"checks"`
	MachineChecks []MachineCheck    `toml:"machine_checks"`
	Files         []FileEntry       `toml:"files"`
	Restart       []Restart         `toml:"restart"`
	VM            []VM              `toml:"vm"`
	Statics       []Static          `toml:"statics"`
	Metrics       []Metrics         `toml:"metrics"`
}

// Experimental is [experimental].
type Experimental struct {
	Cmd            Command   `toml:"cmd"`
	Entrypoint     Command   `toml:"entrypoint"`
	Exec           Command   `toml:"exec"`
	AutoRollback   *bool     `toml:"auto_rollback"`
	EnableConsul   bool      `toml:"enable_consul"`
	EnableEtcd     bool      `toml:"enable_etcd"`
	LazyLoadImages bool      `toml:"lazy_load_images"`
	Attached       *Attached `toml:"attached"`
	MachineConfig  any       `toml:"machine_config"`
}

// Attached is [experimental.attached].
type Attached struct {
	Secrets struct {
		Export map[string]string `toml:"export"`
	} `toml:"secrets"`
}

// Build is [build].
type Build struct {
	Builder     string          `toml:"builder"`
	Buildpacks  []string        `toml:"buildpacks"`
	Args        map[string]Text `toml:"args"`
	Image       string          `toml:"image"`
	Settings    map[string]any  `toml:"settings"`
	Builtin     string          `toml:"builtin"`
	Dockerfile  string          `toml:"dockerfile"`
	Ignorefile  string          `toml:"ignorefile"`
	BuildTarget string          `toml:"build-target"`
	Compose     *struct {
		File string `toml:"file"`
	} `toml:"compose"`
	Compression      string `toml:"compression"`
	CompressionLevel *int   `toml:"compression_level"`
}

// Deploy is [deploy].
type Deploy struct {
	Strategy              string  `toml:"strategy"`
	MaxUnavailable        *Share  `toml:"max_unavailable"`
	WaitTimeout           Seconds `toml:"wait_timeout"`
	ReleaseCommand        string  `toml:"release_command"`
	ReleaseCommandTimeout Seconds `toml:"release_command_timeout"`
	ReleaseCommandVM      *VM     `toml:"release_command_vm"`
	SeedCommand           string  `toml:"seed_command"`
}

// Mount is one of [[mounts]].
type Mount struct {
	Source                  string   `toml:"source"`
	Destination             string   `toml:"destination"`
	InitialSize             Text     `toml:"initial_size"`
	SnapshotRetention       *int     `toml:"snapshot_retention"`
	ScheduledSnapshots      *bool    `toml:"scheduled_snapshots"`
	AutoExtendSizeThreshold int      `toml:"auto_extend_size_threshold"`
	AutoExtendSizeIncrement Text     `toml:"auto_extend_size_increment"`
	AutoExtendSizeLimit     Text     `toml:"auto_extend_size_limit"`
	Processes               []string `toml:"processes"`
}

// HTTPService is [http_service].
type HTTPService struct {
	InternalPort       *int           `toml:"internal_port"`
	ForceHTTPS         bool           `toml:"force_https"`
	AutoStopMachines   StopMode       `toml:"auto_stop_machines"`
	AutoStartMachines  *bool          `toml:"auto_start_machines"`
	MinMachinesRunning *int           `toml:"min_machines_running"`
	Processes          []string       `toml:"processes"`
	Concurrency        *Concurrency   `toml:"concurrency"`
	TLSOptions         *TLSOptions    `toml:"tls_options"`
	HTTPOptions        *HTTPOptions   `toml:"http_options"`
	Checks             []HTTPCheck    `toml:"checks"`
	MachineChecks      []MachineCheck `toml:"machine_checks"`
}

// Service is one of [[services]].
type Service struct {
	Protocol           string         `toml:"protocol"`
	InternalPort       int            `toml:"internal_port"`
	AutoStopMachines   StopMode       `toml:"auto_stop_machines"`
	AutoStartMachines  *bool          `toml:"auto_start_machines"`
	MinMachinesRunning *int           `toml:"min_machines_running"`
	Processes          []string       `toml:"processes"`
	Concurrency        *Concurrency   `toml:"concurrency"`
	Ports              []Port         `toml:"ports"`
	TCPChecks          []TCPCheck     `toml:"tcp_checks"`
	HTTPChecks         []HTTPCheck    `toml:"http_checks"`
	MachineChecks      []MachineCheck `toml:"machine_checks"`
}

// Port is one of [[services.ports]].
type Port struct {
	Port              *int               `toml:"port"`
	StartPort         *int               `toml:"start_port"`
	EndPort           *int               `toml:"end_port"`
	Handlers          []string           `toml:"handlers"`
	ForceHTTPS        bool               `toml:"force_https"`
	TLSOptions        *TLSOptions        `toml:"tls_options"`
	HTTPOptions       *HTTPOptions       `toml:"http_options"`
	ProxyProtoOptions *ProxyProtoOptions `toml:"proxy_proto_options"`
}

// Concurrency is [….concurrency].
type Concurrency struct {
	Type      string `toml:"type"`
	SoftLimit int    `toml:"soft_limit"`
	HardLimit int    `toml:"hard_limit"`
}

// TLSOptions is [….tls_options].
type TLSOptions struct {
	ALPN              []string `toml:"alpn"`
	Versions          []string `toml:"versions"`
	DefaultSelfSigned *bool    `toml:"default_self_signed"`
}

// HTTPOptions is [….http_options].
type HTTPOptions struct {
	Compress           *bool         `toml:"compress"`
	H2Backend          *bool         `toml:"h2_backend"`
	IdleTimeout        *int          `toml:"idle_timeout"`         // seconds
	HeadersReadTimeout *int          `toml:"headers_read_timeout"` // seconds
	Response           *HTTPResponse `toml:"response"`
	ReplayCache        []ReplayCache `toml:"replay_cache"`
}

// HTTPResponse is [….http_options.response].
type HTTPResponse struct {
	Headers  map[string]any `toml:"headers"`
	Pristine *bool          `toml:"pristine"`
}

// ReplayCache is one of [[….http_options.replay_cache]].
type ReplayCache struct {
	PathPrefix  string `toml:"path_prefix"`
	TTLSeconds  int    `toml:"ttl_seconds"`
	Type        string `toml:"type"`
	Name        string `toml:"name"`
	AllowBypass bool   `toml:"allow_bypass"`
}

// ProxyProtoOptions is [….proxy_proto_options].
type ProxyProtoOptions struct {
	Version string `toml:"version"`
}

// TCPCheck is one of [[….tcp_checks]].
type TCPCheck struct {
	Interval    Seconds `toml:"interval"`
	Timeout     Seconds `toml:"timeout"`
	GracePeriod Seconds `toml:"grace_period"`
}

// HTTPCheck is one of [[….http_checks]] and [[http_service.checks]].
type HTTPCheck struct {
	Interval      Seconds `toml:"interval"`
	Timeout       Seconds `toml:"timeout"`
	GracePeriod   Seconds `toml:"grace_period"`
	Method        string  `toml:"method"`
	Path          string  `toml:"path"`
	Protocol      string  `toml:"protocol"`
	Headers       Headers `toml:"headers"`
	TLSSkipVerify *bool   `toml:"tls_skip_verify"`
	TLSServerName string  `toml:"tls_server_name"`
}

// Check is [checks.NAME].
type Check struct {
	Type          string   `toml:"type"`
	Port          *int     `toml:"port"`
	Interval      Seconds  `toml:"interval"`
	Timeout       Seconds  `toml:"timeout"`
	GracePeriod   Seconds  `toml:"grace_period"`
	Method        string   `toml:"method"`
	Path          string   `toml:"path"`
	Protocol      string   `toml:"protocol"`
	Headers       Headers  `toml:"headers"`
	TLSSkipVerify *bool    `toml:"tls_skip_verify"`
	TLSServerName string   `toml:"tls_server_name"`
	Processes     []string `toml:"processes"`
}

// MachineCheck is one of [[….machine_checks]].
type MachineCheck struct {
	Command     Command `toml:"command"`
	Image       string  `toml:"image"`
	Entrypoint  Command `toml:"entrypoint"`
	KillSignal  string  `toml:"kill_signal"`
	KillTimeout Seconds `toml:"kill_timeout"`
}

// FileEntry is one of [[files]].
type FileEntry struct {
	GuestPath  string   `toml:"guest_path"`
	LocalPath  string   `toml:"local_path"`
	RawValue   string   `toml:"raw_value"`
	SecretName string   `toml:"secret_name"`
	Processes  []string `toml:"processes"`
}

// Restart is one of [[restart]].
type Restart struct {
	Policy    string   `toml:"policy"` // always, never, on-failure
	Retries   int      `toml:"retries"`
	Processes []string `toml:"processes"`
}

// VM is one of [[vm]].
type VM struct {
	Size             string   `toml:"size"`
	Memory           Text     `toml:"memory"` // "512mb", "2gb", or MiB
	CPUKind          string   `toml:"cpu_kind"`
	CPUs             int      `toml:"cpus"`
	MemoryMB         int      `toml:"memory_mb"`
	GPUs             int      `toml:"gpus"`
	GPUKind          string   `toml:"gpu_kind"`
	HostDedicationID string   `toml:"host_dedication_id"`
	KernelArgs       []string `toml:"kernel_args"`
	PersistRootfs    string   `toml:"persist_rootfs"`
	Processes        []string `toml:"processes"`
}

// Static is one of [[statics]].
type Static struct {
	GuestPath     string `toml:"guest_path"`
	URLPrefix     string `toml:"url_prefix"`
	TigrisBucket  string `toml:"tigris_bucket"`
	IndexDocument string `toml:"index_document"`
}

// Metrics is [metrics] or one of [[metrics]].
type Metrics struct {
	Port      int      `toml:"port"`
	Path      string   `toml:"path"`
	HTTPS     bool     `toml:"https"`
	Processes []string `toml:"processes"`
}
