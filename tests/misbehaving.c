/* LV2 plugins that fail while their control is above 0.5, each in another way, and pass audio through below. The
   structures are those of LV2's lv2.h, which need not be installed. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

typedef struct {
    const char *uri;
    void *(*instantiate)(const void *, double, const char *, const void *const *);
    void (*connect_port)(void *, uint32_t, void *);
    void (*activate)(void *);
    void (*run)(void *, uint32_t);
    void (*deactivate)(void *);
    void (*cleanup)(void *);
    const void *(*extension_data)(const char *);
} Descriptor;

typedef struct {
    float *ports[3]; /* input, output, control */
} Plugin;

static void *instantiate(const void *descriptor, double rate, const char *bundle, const void *const *f) {
    return calloc(1, sizeof(Plugin));
}

static void connect_port(void *plugin, uint32_t port, void *data) { ((Plugin *)plugin)->ports[port] = data; }

static int fails(Plugin *plugin) { return *plugin->ports[2] > 0.5f; }

static void pass_through(Plugin *plugin, uint32_t samples, float factor) {
    for (uint32_t i = 0; i < samples; i++) plugin->ports[1][i] = factor * plugin->ports[0][i];
}

static void crash(void *plugin, uint32_t samples) {
    if (fails(plugin)) *(volatile int *)0 = 1;
    pass_through(plugin, samples, 1.0f);
}

static void hang(void *plugin, uint32_t samples) {
    while (fails(plugin)) sleep(1);
    pass_through(plugin, samples, 1.0f);
}

static void not_a_number(void *plugin, uint32_t samples) {
    pass_through(plugin, samples, fails(plugin) ? NAN : 1.0f);
}

static const Descriptor plugins[] = {
    {"urn:test:crash", instantiate, connect_port, NULL, crash, NULL, free, NULL},
    {"urn:test:hang", instantiate, connect_port, NULL, hang, NULL, free, NULL},
    {"urn:test:nan", instantiate, connect_port, NULL, not_a_number, NULL, free, NULL},
};

const Descriptor *lv2_descriptor(uint32_t index) { return index < 3 ? &plugins[index] : NULL; }
