/* The simulated machine that libnvidia-ml.so.1 and libcuda.so.1 agree on.
 *
 * Everything is an environment variable, so a test describes its machine and every worker inherits it.
 * What processes do to the GPUs (contexts, memory) is written to small files in $GPUSIM_STATE, one for
 * each process and GPU; that is how one process sees in NVML what another one did in CUDA. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MAX_CARDS 64
#define MAX_INSTANCES 7 /* of MIG on a card */
#define MAX_HOLDERS 256
#define WHOLE_CARD -1 /* as an instance */
#define CONTEXT_BYTES (256ull << 20) /* what a CUDA context takes */
#define DRIVER_CUDA_VERSION 13000

static int knob(const char *name, int usual) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : usual;
}

/* The i-th field of a list with ';' between; the last one repeats. NULL if the variable is not set. */
static const char *knob_field(const char *name, int i, char *field, size_t size) {
    const char *text = getenv(name), *next;
    if (!text || !*text) return NULL;
    while (i-- > 0 && (next = strchr(text, ';'))) text = next + 1;
    snprintf(field, size, "%.*s", (int)strcspn(text, ";"), text);
    return field;
}

static int within(int value, int least, int most) {
    return value < least ? least : value > most ? most : value;
}

static int n_cards(void) {
    return within(knob("GPUSIM_GPUS", 0), 0, MAX_CARDS);
}

static int n_instances(void) { /* of MIG on each card; 0 is MIG off */
    return within(knob("GPUSIM_MIG", 0), 0, MAX_INSTANCES);
}

static int n_cpus(void) {
    return (int)sysconf(_SC_NPROCESSORS_CONF);
}

static const char *card_name(void) {
    const char *name = getenv("GPUSIM_NAME");
    return name && *name ? name : "Simulated GPU";
}

static uint64_t memory_of(int instance) {
    uint64_t card = (uint64_t)knob("GPUSIM_MEMORY_MIB", 81920) << 20;
    return instance == WHOLE_CARD ? card : card / n_instances();
}

static void write_uuid(int card, int instance, char *uuid, size_t size) {
    if (instance == WHOLE_CARD)
        snprintf(uuid, size, "GPU-%08x-0000-4000-8000-000000000000", 0x51b00000 + card);
    else
        snprintf(uuid, size, "MIG-%08x-0000-4000-8000-%012x", 0x51b00000 + card, instance);
}

static void trace(const char *library, const char *function) {
    const char *path = getenv("GPUSIM_TRACE");
    FILE *file = path && *path ? fopen(path, "a") : NULL;
    if (!file) return;
    fprintf(file, "%d %s %s\n", getpid(), library, function);
    fclose(file);
}

/* Write, as this process, how much of a GPU it holds; nothing is written without a context */
static void write_holder(int card, int instance, int has_context, uint64_t bytes) {
    const char *folder = getenv("GPUSIM_STATE");
    char path[4096], aside[4096];
    FILE *file;
    if (!folder || !*folder) return;
    snprintf(path, sizeof path, "%s/%d.%d.%d", folder, card, instance, getpid());
    if (!has_context) {
        unlink(path);
        return;
    }
    snprintf(aside, sizeof aside, "%s/.%d.%d.%d", folder, card, instance, getpid());
    if (!(file = fopen(aside, "w"))) return;
    fprintf(file, "%llu", (unsigned long long)(bytes + CONTEXT_BYTES));
    fclose(file);
    rename(aside, path); /* a reader never sees half a number */
}

struct holder {
    int pid;
    uint64_t bytes;
};

/* Processes that hold an instance, or any part of a card; the dead are forgotten, as by a driver */
static int list_holders(int card, int instance, struct holder *holders) {
    const char *folder = getenv("GPUSIM_STATE");
    DIR *open = folder && *folder ? opendir(folder) : NULL;
    struct dirent *entry;
    int n = 0;
    while (open && (entry = readdir(open)) && n < MAX_HOLDERS) {
        int found_card, found_instance, pid;
        unsigned long long bytes = 0;
        char path[4096];
        FILE *file;
        if (sscanf(entry->d_name, "%d.%d.%d", &found_card, &found_instance, &pid) != 3) continue;
        if (found_card != card || (instance != WHOLE_CARD && found_instance != instance)) continue;
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        if (kill(pid, 0) && errno == ESRCH) {
            unlink(path);
            continue;
        }
        if (!(file = fopen(path, "r"))) continue;
        if (fscanf(file, "%llu", &bytes) == 1) holders[n++] = (struct holder){pid, bytes};
        fclose(file);
    }
    if (open) closedir(open);
    return n;
}
