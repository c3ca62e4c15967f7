package machine

import (
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// Config is what a user says about a Machine: the Machines API's config object,
// field for field (see docs/api.md for what each does here). It is stored,
// sent to workers and answered in this one shape. Fields that Bulkhead does not
// act on yet are refused by Validate, never ignored.
type Config struct {
	Image       string            `json:"image,omitempty"`
	Env         map[string]string `json:"env,omitempty"`
	Init        *Init             `json:"init,omitempty"`
	Guest       *Guest            `json:"guest,omitempty"`
	Size        string            `json:"size,omitempty"` // deprecated preset name; excludes Guest
	Rootfs      *Rootfs           `json:"rootfs,omitempty"`
	Metadata    map[string]string `json:"metadata,omitempty"`
	Mounts      []Mount           `json:"mounts,omitempty"`
	Services    []Service         `json:"services,omitempty"`
	Checks      map[string]Check  `json:"checks,omitempty"`
	Metrics     *Metrics          `json:"metrics,omitempty"`
	Statics     []Static          `json:"statics,omitempty"`
	Files       []File            `json:"files,omitempty"`
	Schedule    string            `json:"schedule,omitempty"`
	AutoDestroy bool              `json:"auto_destroy,omitempty"`
	Restart     *Restart          `json:"restart,omitempty"`
	StopConfig  *StopConfig       `json:"stop_config,omitempty"`
	DNS         *DNS              `json:"dns,omitempty"`
	Processes   []Process         `json:"processes,omitempty"`
	Limits      *Limits           `json:"bulkhead_limits,omitempty"` // not in the Machines API
	Standbys    []string          `json:"standbys,omitempty"`
	Containers  []json.RawMessage `json:"containers,omitempty"`
	Volumes     []json.RawMessage `json:"volumes,omitempty"`
	// DisableMachineAutostart, if true, voids every service's autostart. The Machines API has
	// replaced it by that field of the services.
	DisableMachineAutostart *bool `json:"disable_machine_autostart,omitempty"`
}

// Init overrides what the image says to run.
type Init struct {
	Exec       []string `json:"exec,omitempty"`       // replaces entrypoint and cmd
	Entrypoint []string `json:"entrypoint,omitempty"` // replaces the image's entrypoint
	Cmd        []string `json:"cmd,omitempty"`        // replaces the image's cmd
	TTY        bool     `json:"tty,omitempty"`
	SwapSizeMB int      `json:"swap_size_mb,omitempty"`
	KernelArgs []string `json:"kernel_args,omitempty"`
}

// Guest is the size of a Machine.
type Guest struct {
	CPUKind          string   `json:"cpu_kind,omitempty"` // "shared" or "performance"
	CPUs             int      `json:"cpus,omitempty"`
	MemoryMB         int      `json:"memory_mb,omitempty"` // MiB
	MaxMemoryMB      int      `json:"max_memory_mb,omitempty"`
	GPUs             int      `json:"gpus,omitempty"`
	GPUKind          string   `json:"gpu_kind,omitempty"`
	HostDedicationID string   `json:"host_dedication_id,omitempty"`
	KernelArgs       []string `json:"kernel_args,omitempty"`
	PersistRootfs    string   `json:"persist_rootfs,omitempty"`
}

// Rootfs says whether the writable layer outlives a stop.
type Rootfs struct {
	Persist string `json:"persist,omitempty"` // "never", "restart", "always"
	SizeGB  int    `json:"size_gb,omitempty"`
}

// Mount attaches a volume.
type Mount struct {
	Volume                 string `json:"volume,omitempty"`
	Name                   string `json:"name,omitempty"`
	Path                   string `json:"path,omitempty"`
	SizeGB                 int    `json:"size_gb,omitempty"`
	Encrypted              bool   `json:"encrypted,omitempty"`
	ExtendThresholdPercent int    `json:"extend_threshold_percent,omitempty"`
	AddSizeGB              int    `json:"add_size_gb,omitempty"`
	SizeGBLimit            int    `json:"size_gb_limit,omitempty"`
}

// Service exposes one internal port to the edge.
type Service struct {
	Protocol                 string       `json:"protocol,omitempty"` // "tcp" or "udp"
	InternalPort             int          `json:"internal_port,omitempty"`
	Ports                    []Port       `json:"ports,omitempty"`
	Autostart                *bool        `json:"autostart,omitempty"`
	Autostop                 *Autostop    `json:"autostop,omitempty"`
	MinMachinesRunning       *int         `json:"min_machines_running,omitempty"`
	Concurrency              *Concurrency `json:"concurrency,omitempty"`
	Checks                   []Check      `json:"checks,omitempty"`
	ForceInstanceKey         *string      `json:"force_instance_key,omitempty"`
	ForceInstanceDescription *string      `json:"force_instance_description,omitempty"`
}

// Port is a public port of a Service.
type Port struct {
	Port              *int               `json:"port,omitempty"`
	StartPort         *int               `json:"start_port,omitempty"`
	EndPort           *int               `json:"end_port,omitempty"`
	Handlers          []string           `json:"handlers,omitempty"`
	ForceHTTPS        bool               `json:"force_https,omitempty"`
	TLSOptions        *TLSOptions        `json:"tls_options,omitempty"`
	HTTPOptions       *HTTPOptions       `json:"http_options,omitempty"`
	ProxyProtoOptions *ProxyProtoOptions `json:"proxy_proto_options,omitempty"`
}

// TLSOptions of a Port.
type TLSOptions struct {
	ALPN              []string `json:"alpn,omitempty"`
	Versions          []string `json:"versions,omitempty"`
	DefaultSelfSigned *bool    `json:"default_self_signed,omitempty"`
}

// HTTPOptions of a Port.
type HTTPOptions struct {
	Compress           *bool             `json:"compress,omitempty"`
	H2Backend          *bool             `json:"h2_backend,omitempty"`
	IdleTimeout        *int              `json:"idle_timeout,omitempty"`         // seconds
	HeadersReadTimeout *int              `json:"headers_read_timeout,omitempty"` // seconds
	Response           *HTTPResponse     `json:"response,omitempty"`
	ReplayCache        []json.RawMessage `json:"replay_cache,omitempty"`
}

// HTTPResponse changes response headers: a value is a string, a list, or false (remove).
type HTTPResponse struct {
	Headers  map[string]any `json:"headers,omitempty"`
	Pristine *bool          `json:"pristine,omitempty"`
}

// ProxyProtoOptions of a Port.
type ProxyProtoOptions struct {
	Version string `json:"version,omitempty"` // "v1" or "v2"
}

// Concurrency limits what the edge sends to one Machine.
type Concurrency struct {
	Type      string `json:"type,omitempty"` // "connections" or "requests"
	SoftLimit int    `json:"soft_limit,omitempty"`
	HardLimit int    `json:"hard_limit,omitempty"`
}

// Check is a health check.
type Check struct {
	Type          string        `json:"type,omitempty"` // "tcp" or "http"
	Port          *int          `json:"port,omitempty"`
	Kind          string        `json:"kind,omitempty"` // "informational" or "readiness"
	Interval      *Duration     `json:"interval,omitempty"`
	Timeout       *Duration     `json:"timeout,omitempty"`
	GracePeriod   *Duration     `json:"grace_period,omitempty"`
	Method        *string       `json:"method,omitempty"`
	Path          *string       `json:"path,omitempty"`
	Protocol      *string       `json:"protocol,omitempty"`
	Headers       []CheckHeader `json:"headers,omitempty"`
	TLSServerName *string       `json:"tls_server_name,omitempty"`
	TLSSkipVerify *bool         `json:"tls_skip_verify,omitempty"`
}

// CheckHeader is a header that an HTTP check sends.
type CheckHeader struct {
	Name   string   `json:"name,omitempty"`
	Values []string `json:"values,omitempty"`
}

// Metrics says where the app serves Prometheus metrics.
type Metrics struct {
	Port  int    `json:"port,omitempty"`
	Path  string `json:"path,omitempty"`
	HTTPS bool   `json:"https,omitempty"`
}

// Static maps a URL prefix to a folder of the image.
type Static struct {
	GuestPath     string `json:"guest_path,omitempty"`
	URLPrefix     string `json:"url_prefix,omitempty"`
	TigrisBucket  string `json:"tigris_bucket,omitempty"`
	IndexDocument string `json:"index_document,omitempty"`
}

// File is written into the Machine before it starts.
type File struct {
	GuestPath   string  `json:"guest_path,omitempty"` // absolute
	RawValue    *string `json:"raw_value,omitempty"`  // base64
	SecretName  *string `json:"secret_name,omitempty"`
	ImageConfig *string `json:"image_config,omitempty"`
	Mode        uint32  `json:"mode,omitempty"`
}

// Restart is the restart policy.
type Restart struct {
	Policy     string `json:"policy,omitempty"`      // "no", "on-failure", "always"
	MaxRetries int    `json:"max_retries,omitempty"` // for on-failure; 0 means 10
}

// StopConfig says how a Machine is stopped.
type StopConfig struct {
	Signal  string    `json:"signal,omitempty"`
	Timeout *Duration `json:"timeout,omitempty"`
}

// DNS configures name resolution inside the Machine.
type DNS struct {
	SkipRegistration bool              `json:"skip_registration,omitempty"`
	Nameservers      []string          `json:"nameservers,omitempty"`
	Searches         []string          `json:"searches,omitempty"`
	Options          []DNSOption       `json:"options,omitempty"`
	DNSForwardRules  []json.RawMessage `json:"dns_forward_rules,omitempty"`
	Hostname         string            `json:"hostname,omitempty"`
	HostnameFQDN     string            `json:"hostname_fqdn,omitempty"`
}

// DNSOption is one resolv.conf option.
type DNSOption struct {
	Name  string `json:"name,omitempty"`
	Value string `json:"value,omitempty"`
}

// Process is one process of a multi-process Machine; Bulkhead runs one.
type Process struct {
	Exec             []string          `json:"exec,omitempty"`
	Entrypoint       []string          `json:"entrypoint,omitempty"`
	Cmd              []string          `json:"cmd,omitempty"`
	User             string            `json:"user,omitempty"`
	Env              map[string]string `json:"env,omitempty"`
	Secrets          []Secret          `json:"secrets,omitempty"`
	IgnoreAppSecrets bool              `json:"ignore_app_secrets,omitempty"`
	EnvFrom          []json.RawMessage `json:"env_from,omitempty"`
}

// Secret names one of the app's secrets, and the variable that it becomes. A process
// that names any gets these and no others.
type Secret struct {
	EnvVar string `json:"env_var"`
	Name   string `json:"name,omitempty"`
}

// Source is the name of the secret: EnvVar's unless it says otherwise.
func (s Secret) Source() string {
	if s.Name == "" {
		return s.EnvVar
	}
	return s.Name
}

// Duration is a time.Duration that JSON gives as a Go string ("15s") or as
// integer nanoseconds, and that is always answered as a string.
type Duration time.Duration

// MarshalJSON gives the string form.
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// UnmarshalJSON takes both forms.
func (d *Duration) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	if len(b) > 0 && b[0] == '"' {
		var s string
		if err := json.Unmarshal(b, &s); err != nil {
			return err
		}
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			*d = Duration(time.Duration(n) * time.Second)
			return nil
		}
		v, err := time.ParseDuration(s)
		if err != nil {
			return fmt.Errorf("%q is not a duration such as \"15s\"", s)
		}
		*d = Duration(v)
		return nil
	}
	n, err := strconv.ParseInt(string(b), 10, 64)
	if err != nil {
		return fmt.Errorf("%s is neither a duration such as \"15s\" nor whole nanoseconds", b)
	}
	*d = Duration(n)
	return nil
}

// Autostop is what the edge does with an idle Machine: "off", "stop" or "suspend".
// JSON may give it as a boolean; it is answered as false, true or "suspend", which
// is what old clients read.
type Autostop string

// MarshalJSON gives the form old clients read.
func (a Autostop) MarshalJSON() ([]byte, error) {
	switch a {
	case "stop":
		return []byte("true"), nil
	case "suspend":
		return []byte(`"suspend"`), nil
	}
	return []byte("false"), nil
}

// UnmarshalJSON takes the word or the boolean.
func (a *Autostop) UnmarshalJSON(b []byte) error {
	switch string(b) {
	case "null":
	case "false", `"off"`:
		*a = "off"
	case "true", `"stop"`:
		*a = "stop"
	case `"suspend"`:
		*a = "suspend"
	default:
		return fmt.Errorf("autostop is %s; it must be \"off\", \"stop\", \"suspend\" or a boolean", b)
	}
	return nil
}
