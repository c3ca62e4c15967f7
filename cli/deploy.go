package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"bulkhead/client"
	"bulkhead/deployfile"
	"bulkhead/fault"
	"bulkhead/machine"
)

// deployFlags are the flags of deploy.
type deployFlags struct {
	image          string
	file           string
	strategy       string
	maxUnavailable int
	region         string
	env            []string
	size           sizeFlags
	port           int
	portGiven      bool
	ha             bool
	keepFailed     bool
	allowOutside   bool
	wait           time.Duration
	settle         time.Duration
}

// Defaults of a deploy without a deploy file.
const (
	defaultPort = 8080
	defaultWait = 5 * time.Minute
)

func (s *session) deployCommand() *cobra.Command {
	var f deployFlags
	c := &cobra.Command{
		Use:   "deploy [DIR]",
		Short: "Deploy an app",
		Long: `Deploy an app: upload its image where it is on this computer, then give the app's
Machines the new version, or make the first ones, and wait until they run.

DIR (default the current folder) may hold a bulkhead.toml or fly.toml. The image is
the one that --image or [build] image names: a reference, an OCI layout folder, an
OCI archive, or the output of "docker save". Without a deploy file the app is
reached over HTTPS at --port of its Machines.

Paths in a deploy file stay in its folder, because a repository of somebody else may hold
it; --allow-outside lets them lead anywhere.

Machines are updated one after another, each under a lease that keeps others from
changing it. A Machine must go on running for the time of --settle, and then every port
of its services must take connections from the network: within a minute, or 10 s when
the app listens elsewhere. One that does not gets its old version back, and the deploy
ends there, so that the app goes on running. When the first deploy of an app fails, the
Machines it made are destroyed.`,
		Example: `  bulkhead deploy --image registry.example.com/shop:1.4 --app shop --port 3000
  bulkhead deploy --image ./shop.tar --app shop
  bulkhead deploy ./shop`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 1 {
				return hint(usagef("unexpected argument %q", args[1]), "see %q", c.CommandPath()+" --help")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			f.portGiven = c.Flags().Changed("port")
			dir := "."
			if len(args) == 1 {
				dir = args[0]
			}
			return s.deploy(c.Context(), dir, f)
		},
	}
	f.size.add(c)
	fl := c.Flags()
	fl.StringVarP(&f.image, "image", "i", "", "image to deploy: a reference, an OCI layout folder or an archive")
	fl.StringVar(&f.file, "file", "", "deploy file (default bulkhead.toml or fly.toml in DIR)")
	fl.StringVar(&f.strategy, "strategy", "", "rolling: some Machines at a time; canary: one alone first; immediate: all at once, without waiting (default rolling)")
	fl.IntVar(&f.maxUnavailable, "max-unavailable", 0, "how many Machines a rolling deploy updates at a time (default a third of them)")
	fl.StringVar(&f.region, "region", "", "region for new Machines (default the cluster's)")
	fl.StringArrayVarP(&f.env, "env", "e", nil, "environment variable NAME=VALUE, over those of the deploy file; may be repeated")
	fl.IntVar(&f.port, "port", defaultPort, "port the app listens on; 0 for an app that is not to be reached; not with a deploy file")
	fl.BoolVar(&f.ha, "ha", false, "have two Machines or more in each process group: add what is missing")
	fl.BoolVar(&f.allowOutside, "allow-outside", false, "let paths in the deploy file lead out of its folder")
	fl.BoolVar(&f.keepFailed, "keep-failed", false, "keep new Machines that do not start, to look at them")
	fl.DurationVar(&f.wait, "wait", 0, "how long one Machine may take to start (default 5m, or what the deploy file says)")
	fl.DurationVar(&f.settle, "settle", defaultSettle, "how long a started Machine must go on running before its ports are tried")
	return c
}

// deployment is one deploy under way.
type deployment struct {
	s        *session
	api      *client.Client
	app      string
	file     *deployfile.File // nil without one
	flags    deployFlags
	env      map[string]string
	image    string // as the cluster fetches it
	port     int
	strategy string
	wait     time.Duration
	region   string

	updates []*update
	creates []*create
}

// deployed is a Machine in the result of a deploy.
type deployed struct {
	ID      string `json:"id"`
	Group   string `json:"group"`
	State   string `json:"state"`
	Action  string `json:"action"` // created or updated
	Version string `json:"version"`
}

func (s *session) deploy(ctx context.Context, dir string, f deployFlags) error {
	d := &deployment{s: s, flags: f, port: f.port}
	source, err := d.read(dir)
	if err != nil {
		return err
	}
	if err := d.settings(); err != nil {
		return err
	}
	if err := d.check(); err != nil {
		return err
	}
	if d.api, err = s.client(); err != nil {
		return err
	}
	if _, err := d.api.App(ctx, d.app); err != nil {
		return s.noApp(ctx, d.api, d.app, err)
	}
	if err := d.chooseRegion(ctx); err != nil {
		return err
	}
	var exposed int
	if d.image, exposed, err = s.resolveImage(ctx, d.api, d.app, source); err != nil {
		return err
	}
	if d.file == nil && !f.portGiven && exposed != 0 && exposed != d.port {
		s.ui.warn("the image says that it listens on port %d, and the app is reached at port %d; --port %d changes that", exposed, d.port, exposed)
	}
	if err := d.plan(ctx); err != nil {
		return err
	}
	if err := d.run(ctx); err != nil {
		return err
	}
	return d.report()
}

// read finds the deploy file, the app and the image. DIR may be an image itself.
func (d *deployment) read(dir string) (source imageSource, err error) {
	image := d.flags.image
	path := d.flags.file
	if path == "" {
		st, err := os.Stat(dir)
		if err != nil {
			return source, usagef("there is no folder %s", dir)
		}
		if !st.IsDir() || (dir != "." && isLayout(dir) && deployfile.Find(dir) == "") {
			if image != "" {
				return source, usagef("%s is an image, and --image names another one", dir)
			}
			image, dir = dir, "."
		}
		path = deployfile.Find(dir)
	}
	if path != "" {
		if d.file, err = deployfile.Load(path); err != nil {
			if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Invalid) {
				return source, usage(err)
			}
			return source, err
		}
		d.file.AllowOutside = d.flags.allowOutside
		for _, w := range d.file.Warnings {
			d.s.ui.warn("%s", w)
		}
		if d.flags.portGiven {
			return source, hint(usagef("--port and the deploy file %s both say where the app listens", path), "change internal_port in %s", path)
		}
	}
	if err := d.chooseApp(path); err != nil {
		return source, err
	}
	if image == "" {
		return d.fileImage()
	}
	if !isLocal(image) {
		err = checkReference(image)
	}
	return imageSource{name: image}, err
}

func isLayout(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "oci-layout"))
	return err == nil
}

func (d *deployment) chooseApp(path string) error {
	switch {
	case d.s.appFlag != "":
		app, err := checkApp(d.s.appFlag)
		d.app = app
		return err
	case d.file != nil && d.file.App != "":
		d.app = d.file.App
		return nil
	case path != "":
		return hint(usagef("%s names no app", path), "give --app NAME, or write app = \"NAME\" at its top")
	}
	return hint(usagef("no app named"), "give --app NAME, or deploy a folder with a bulkhead.toml or fly.toml")
}

// fileImage is the image that the deploy file names; a path in it starts at its folder.
func (d *deployment) fileImage() (imageSource, error) {
	if d.file == nil {
		return imageSource{}, hint(usagef("nothing to deploy: no --image, and no bulkhead.toml or fly.toml here"), "bulkhead deploy --image IMAGE --app %s", d.app)
	}
	if d.file.Build == nil || d.file.Build.Image == "" {
		err := usagef("%s names no image", d.file.Path)
		if ks := d.file.Recipe(); len(ks) > 0 {
			err = usagef("%s: building an image from source (build.%s) is not supported yet", d.file.At("build."+ks[0]), strings.Join(ks, ", build."))
		}
		return imageSource{}, hint(err, "build the image elsewhere, and give --image IMAGE or write [build] image = \"IMAGE\"")
	}
	image := d.file.Build.Image
	inFolder := image
	if !filepath.IsAbs(image) {
		inFolder = filepath.Join(filepath.Dir(d.file.Path), image)
	}
	if _, err := os.Lstat(inFolder); err != nil || !isLocal(inFolder) {
		if !pathLikeRE.MatchString(image) {
			return imageSource{name: image}, checkReference(image)
		}
		if err != nil {
			return imageSource{}, usagef("%s: there is no image at %s", d.file.At("build.image"), inFolder)
		}
	}
	src := imageSource{name: inFolder}
	if !d.file.AllowOutside {
		src.folder = filepath.Dir(d.file.Path)
	}
	if f, err := src.open(inFolder); errors.Is(err, errOutside) {
		return src, hint(usagef("%s: build.image %q leads out of the folder of %s", d.file.At("build.image"), image, d.file.Path), deployfile.OutsideHint)
	} else if err == nil {
		f.Close()
	}
	return src, nil
}

// check builds what every process group is to run and has it checked by the platform's
// own rules, before anything is uploaded.
func (d *deployment) check() error {
	groups := []string{deployfile.DefaultGroup}
	if d.file != nil {
		groups = d.file.Groups()
	}
	for _, g := range groups {
		c, err := d.config(g, nil)
		if err != nil {
			return err
		}
		if err := checkConfig(c); err != nil {
			return err
		}
	}
	return nil
}

// settings takes the strategy, the waits and the environment from the flags and the file.
func (d *deployment) settings() error {
	var err error
	if d.env, err = pairs("env", d.flags.env); err != nil {
		return err
	}
	d.strategy, d.wait = "rolling", defaultWait
	if d.file != nil {
		d.strategy, d.wait = d.file.Strategy(), d.file.WaitTimeout()
	}
	if d.flags.strategy != "" {
		d.strategy = d.flags.strategy
	}
	if !slices.Contains(deployfile.Strategies, d.strategy) {
		return usagef("--strategy %q is none of %s", d.strategy, strings.Join(deployfile.Strategies, ", "))
	}
	if d.flags.wait > 0 {
		d.wait = d.flags.wait
	}
	if d.flags.maxUnavailable < 0 {
		return usagef("--max-unavailable %d is negative", d.flags.maxUnavailable)
	}
	if d.port != 0 {
		return checkPortFlag(d.port)
	}
	return nil
}

// chooseRegion takes the region from the flag, or from the file where the cluster
// has that region: a fly.toml names one of another platform. The apps compare
// PRIMARY_REGION with their own region to find out whether they may write, so it names
// a region of the cluster in any case.
func (d *deployment) chooseRegion(ctx context.Context) error {
	d.region = d.flags.region
	if d.region != "" {
		if err := checkRegion(ctx, d.api, d.region); err != nil {
			return err
		}
	}
	if d.file == nil || d.file.PrimaryRegion == "" {
		return nil
	}
	regions, err := d.api.Regions(ctx)
	if err != nil {
		return err
	}
	own := d.region
	for _, r := range regions {
		if r.Code == d.file.PrimaryRegion {
			d.region = cmp.Or(d.region, r.Code)
			return nil
		}
		own = cmp.Or(own, r.Code)
	}
	d.s.ui.warn("%s: this cluster has no region %q; new Machines and PRIMARY_REGION get %q", d.file.At("primary_region"), d.file.PrimaryRegion, own)
	d.file.PrimaryRegion = own
	return nil
}

// config is what a Machine of group is to run; old is nil for a new one.
func (d *deployment) config(group string, old *machine.Config) (*machine.Config, error) {
	var c *machine.Config
	switch {
	case d.file != nil:
		var err error
		if c, err = d.file.MachineConfig(group, d.image, old); err != nil {
			return nil, usage(err)
		}
	case old != nil:
		c = old.Clone()
		c.Image = d.image
		if d.flags.portGiven {
			c.Services = d.services()
		}
	default:
		c = &machine.Config{Image: d.image, Services: d.services(), Env: map[string]string{"FLY_PROCESS_GROUP": group}}
	}
	deployfile.Mark(c, group)
	for k, v := range d.env {
		if c.Env == nil {
			c.Env = map[string]string{}
		}
		c.Env[k] = v
	}
	return c, d.flags.size.apply(c)
}

func (d *deployment) services() []machine.Service {
	if d.port == 0 {
		return nil
	}
	services := deployfile.HTTPServices(d.port, true)
	for i := range services {
		// As in a deploy file that does not say: requests then wait while the only Machine
		// gets its new version.
		on := true
		services[i].Autostart = &on
	}
	return services
}

// report prints what was deployed and where it answers.
func (d *deployment) report() error {
	out := struct {
		App      string     `json:"app"`
		Image    string     `json:"image"`
		URL      string     `json:"url,omitempty"`
		Machines []deployed `json:"machines"`
	}{App: d.app, Image: d.image, Machines: []deployed{}}
	public := false
	for _, u := range d.updates {
		out.Machines = append(out.Machines, deployed{string(u.now.ID), u.old.Group(), string(u.now.State), "updated", string(u.now.InstanceID)})
		public = public || hasHTTPS(u.config)
	}
	for _, c := range d.creates {
		out.Machines = append(out.Machines, deployed{string(c.now.ID), c.group, string(c.now.State), "created", string(c.now.InstanceID)})
		public = public || hasHTTPS(c.config)
	}
	if public {
		out.URL = d.api.AppURL(d.app)
	}
	d.s.ui.progress("deployed %s: %s with %s", d.app, plural(len(out.Machines), "Machine"), shortImage(d.image))
	return d.s.ui.result(out, func(w io.Writer) {
		if out.URL != "" {
			fmt.Fprintln(w, out.URL)
		}
	})
}

// hasHTTPS reports whether a config is reached at the app's HTTPS address.
func hasHTTPS(c *machine.Config) bool {
	for _, s := range c.Services {
		for _, p := range s.Ports {
			if p.Port != nil && *p.Port == machine.PortHTTPS && slices.Contains(p.Handlers, "http") {
				return true
			}
		}
	}
	return false
}
