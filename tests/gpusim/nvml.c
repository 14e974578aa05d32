/* libnvidia-ml.so.1, simulated: what pynvml, distributed and dask-cuda ask of it. For tests only. */
#include "machine.h"

typedef int Result;
enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
};

typedef struct {
    int card, instance;
} Device;

#define N_DEVICES (MAX_CARDS * (1 + MAX_INSTANCES))
static Device devices[N_DEVICES]; /* each card, followed by its instances */
static int n_inits;

static Device *device_of(int card, int instance) {
    return &devices[card * (1 + MAX_INSTANCES) + 1 + instance];
}

static Result check(const Device *device) {
    if (!n_inits) return UNINITIALIZED;
    return device >= devices && device < devices + N_DEVICES ? SUCCESS : INVALID_ARGUMENT;
}

#define REQUIRE_INIT()                                                                             \
    do {                                                                                           \
        trace("nvml", __func__);                                                                   \
        if (!n_inits) return UNINITIALIZED;                                                        \
    } while (0)

#define REQUIRE_DEVICE(device)                                                                     \
    do {                                                                                           \
        trace("nvml", __func__);                                                                   \
        Result result = check(device);                                                             \
        if (result) return result;                                                                 \
    } while (0)

/* A function that answers one number about a device */
#define ANSWERS(name, type, value)                                                                 \
    API Result name(Device *device, type *answer) {                                                \
        REQUIRE_DEVICE(device);                                                                    \
        *answer = (value);                                                                         \
        return SUCCESS;                                                                            \
    }

/* An older or newer name of the same function */
#define ALSO(name, original) API __typeof__(original) name __attribute__((alias(#original)));

static Result answer_text(char *answer, unsigned size, const char *text) {
    if (strlen(text) >= size) return INSUFFICIENT_SIZE;
    strcpy(answer, text);
    return SUCCESS;
}

/* ---- the library and the driver ---- */

API Result nvmlInit_v2(void) {
    int error = knob("GPUSIM_INIT_ERROR", SUCCESS);
    if (error) return error;
    for (int i = 0; i < N_DEVICES; i++)
        devices[i] = (Device){i / (1 + MAX_INSTANCES), i % (1 + MAX_INSTANCES) - 1};
    n_inits++;
    return SUCCESS;
}
ALSO(nvmlInit, nvmlInit_v2)

API Result nvmlInitWithFlags(unsigned flags) {
    return nvmlInit_v2();
}

API Result nvmlShutdown(void) {
    REQUIRE_INIT();
    n_inits--;
    return SUCCESS;
}

API const char *nvmlErrorString(Result result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    default: return "Unknown Error";
    }
}

API Result nvmlSystemGetDriverVersion(char *answer, unsigned size) {
    REQUIRE_INIT();
    return answer_text(answer, size, "580.95.05");
}

API Result nvmlSystemGetNVMLVersion(char *answer, unsigned size) {
    return answer_text(answer, size, "13.580.95.05");
}

API Result nvmlSystemGetCudaDriverVersion_v2(int *version) {
    *version = knob("GPUSIM_CUDA_VERSION", DRIVER_CUDA_VERSION);
    return SUCCESS;
}
ALSO(nvmlSystemGetCudaDriverVersion, nvmlSystemGetCudaDriverVersion_v2)

API Result nvmlSystemGetProcessName(unsigned pid, char *answer, unsigned size) {
    char path[64], name[64] = "";
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    FILE *file = fopen(path, "r");
    if (!file) return NOT_FOUND;
    if (!fgets(name, sizeof name, file)) *name = 0;
    fclose(file);
    name[strcspn(name, "\n")] = 0;
    return answer_text(answer, size, name);
}

/* ---- finding devices ---- */

API Result nvmlDeviceGetCount_v2(unsigned *count) {
    REQUIRE_INIT();
    *count = n_cards();
    return SUCCESS;
}
ALSO(nvmlDeviceGetCount, nvmlDeviceGetCount_v2)

API Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    REQUIRE_INIT();
    if (index >= (unsigned)n_cards()) return INVALID_ARGUMENT;
    *device = device_of(index, WHOLE_CARD);
    return SUCCESS;
}
ALSO(nvmlDeviceGetHandleByIndex, nvmlDeviceGetHandleByIndex_v2)

API Result nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    char found[96];
    REQUIRE_INIT();
    for (int card = 0; card < n_cards(); card++)
        for (int instance = WHOLE_CARD; instance < n_instances(); instance++) {
            write_uuid(card, instance, found, sizeof found);
            if (strcmp(found, uuid)) continue;
            *device = device_of(card, instance);
            return SUCCESS;
        }
    return NOT_FOUND;
}

static void write_bus_id(int card, char *bus_id) {
    sprintf(bus_id, "00000000:%02X:00.0", 0x10 + card);
}

API Result nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Device **device) {
    char found[32];
    REQUIRE_INIT();
    for (int card = 0; card < n_cards(); card++) {
        write_bus_id(card, found);
        /* the domain may have 8 digits or 4 */
        if (strcasecmp(bus_id, found) && strcasecmp(bus_id, found + 4)) continue;
        *device = device_of(card, WHOLE_CARD);
        return SUCCESS;
    }
    return NOT_FOUND;
}
ALSO(nvmlDeviceGetHandleByPciBusId, nvmlDeviceGetHandleByPciBusId_v2)

/* ---- what a device is ---- */

API Result nvmlDeviceGetName(Device *device, char *answer, unsigned size) {
    REQUIRE_DEVICE(device);
    return answer_text(answer, size, card_name());
}

API Result nvmlDeviceGetUUID(Device *device, char *answer, unsigned size) {
    char uuid[96];
    REQUIRE_DEVICE(device);
    write_uuid(device->card, device->instance, uuid, sizeof uuid);
    return answer_text(answer, size, uuid);
}

API Result nvmlDeviceGetSerial(Device *device, char *answer, unsigned size) {
    REQUIRE_DEVICE(device);
    return answer_text(answer, size, "0000000000000");
}

API Result nvmlDeviceGetCudaComputeCapability(Device *device, int *major, int *minor) {
    REQUIRE_DEVICE(device);
    *major = 9, *minor = 0;
    return SUCCESS;
}

struct pci {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
};

API Result nvmlDeviceGetPciInfo_v3(Device *device, struct pci *pci) {
    REQUIRE_DEVICE(device);
    *pci = (struct pci){.bus = 0x10 + device->card, .id = 0x233010de};
    write_bus_id(device->card, pci->bus_id);
    strcpy(pci->legacy, pci->bus_id + 4);
    return SUCCESS;
}
ALSO(nvmlDeviceGetPciInfo, nvmlDeviceGetPciInfo_v3)
ALSO(nvmlDeviceGetPciInfo_v2, nvmlDeviceGetPciInfo_v3)

ANSWERS(nvmlDeviceGetIndex, unsigned, device->card)
ANSWERS(nvmlDeviceGetMinorNumber, unsigned, device->card)
ANSWERS(nvmlDeviceGetBrand, int, 2)
ANSWERS(nvmlDeviceGetArchitecture, unsigned, 9)
ANSWERS(nvmlDeviceGetPersistenceMode, int, 1)
ANSWERS(nvmlDeviceGetDisplayActive, int, 0)
ANSWERS(nvmlDeviceGetDisplayMode, int, 0)
ANSWERS(nvmlDeviceGetComputeMode, int, 0)
ANSWERS(nvmlDeviceGetNumaNodeId, int, 0)
ANSWERS(nvmlDeviceGetPerformanceState, int, 0)
ANSWERS(nvmlDeviceGetPowerUsage, unsigned, 1000 * knob("GPUSIM_WATTS", 100)) /* mW */
ANSWERS(nvmlDeviceGetPowerManagementLimit, unsigned, 700000) /* mW */
ANSWERS(nvmlDeviceGetEnforcedPowerLimit, unsigned, 700000)   /* mW */

API Result nvmlDeviceGetTotalEnergyConsumption(Device *device, unsigned long long *millijoules) {
    REQUIRE_DEVICE(device);
    if (knob("GPUSIM_NO_ENERGY", 0)) return NOT_SUPPORTED; /* a card before Volta, an instance of MIG */
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *millijoules = knob("GPUSIM_WATTS", 100) * (now.tv_sec * 1000ULL + now.tv_nsec / 1000000);
    return SUCCESS;
}

API Result nvmlDeviceGetTemperature(Device *device, int sensor, unsigned *celsius) {
    REQUIRE_DEVICE(device);
    *celsius = 35 + device->card;
    return SUCCESS;
}

API Result nvmlDeviceGetClockInfo(Device *device, int clock, unsigned *mhz) {
    REQUIRE_DEVICE(device);
    *mhz = 1980;
    return SUCCESS;
}
ALSO(nvmlDeviceGetMaxClockInfo, nvmlDeviceGetClockInfo)

API Result nvmlDeviceGetFanSpeed(Device *device, unsigned *percent) {
    REQUIRE_DEVICE(device);
    return NOT_SUPPORTED;
}

/* ---- MIG ---- */

API Result nvmlDeviceGetMigMode(Device *device, unsigned *now, unsigned *pending) {
    REQUIRE_DEVICE(device);
    if (!getenv("GPUSIM_MIG")) return NOT_SUPPORTED; /* a card without MIG */
    *now = *pending = n_instances() > 0;
    return SUCCESS;
}

ANSWERS(nvmlDeviceGetMaxMigDeviceCount, unsigned, MAX_INSTANCES)
ANSWERS(nvmlDeviceIsMigDeviceHandle, unsigned, device->instance != WHOLE_CARD)
ANSWERS(nvmlDeviceGetDeviceHandleFromMigDeviceHandle, Device *, device_of(device->card, WHOLE_CARD))

API Result nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **instance) {
    REQUIRE_DEVICE(device);
    if (index >= (unsigned)n_instances()) return NOT_FOUND;
    *instance = device_of(device->card, index);
    return SUCCESS;
}

/* ---- memory and utilisation ---- */

static uint64_t used_bytes(const Device *device) {
    struct holder holders[MAX_HOLDERS];
    char field[32];
    const char *extra = knob_field("GPUSIM_USED_MIB", device->card, field, sizeof field);
    uint64_t used = extra ? strtoull(extra, NULL, 10) << 20 : 0, total = memory_of(device->instance);
    for (int n = list_holders(device->card, device->instance, holders); n > 0;) used += holders[--n].bytes;
    return used < total ? used : total;
}

struct memory {
    uint64_t total, free, used;
};

struct memory_v2 {
    unsigned version;
    uint64_t total, reserved, free, used;
};

API Result nvmlDeviceGetMemoryInfo(Device *device, struct memory *memory) {
    REQUIRE_DEVICE(device);
    if (knob("GPUSIM_NO_MEMORY_INFO", 0)) return NOT_SUPPORTED; /* a chip that shares its host's memory */
    uint64_t total = memory_of(device->instance), used = used_bytes(device);
    *memory = (struct memory){total, total - used, used};
    return SUCCESS;
}

API Result nvmlDeviceGetMemoryInfo_v2(Device *device, struct memory_v2 *memory) {
    struct memory plain;
    Result result = nvmlDeviceGetMemoryInfo(device, &plain);
    if (!result) *memory = (struct memory_v2){memory->version, plain.total, 0, plain.free, plain.used};
    return result;
}

API Result nvmlDeviceGetBAR1MemoryInfo(Device *device, struct memory *memory) {
    REQUIRE_DEVICE(device);
    *memory = (struct memory){memory_of(WHOLE_CARD), memory_of(WHOLE_CARD), 0};
    return SUCCESS;
}

struct utilization {
    unsigned gpu, memory;
};

API Result nvmlDeviceGetUtilizationRates(Device *device, struct utilization *percent) {
    char field[32];
    REQUIRE_DEVICE(device);
    if (device->instance != WHOLE_CARD) return NOT_SUPPORTED;
    const char *gpu = knob_field("GPUSIM_UTILIZATION", device->card, field, sizeof field);
    percent->gpu = gpu ? atoi(gpu) : 0;
    percent->memory = (unsigned)(used_bytes(device) * 100 / memory_of(WHOLE_CARD));
    return SUCCESS;
}

API Result nvmlDeviceGetEncoderUtilization(Device *device, unsigned *percent, unsigned *period) {
    REQUIRE_DEVICE(device);
    *percent = 0, *period = 1000;
    return SUCCESS;
}
ALSO(nvmlDeviceGetDecoderUtilization, nvmlDeviceGetEncoderUtilization)

/* ---- neighbourhood ---- */

static void set_cpu(unsigned long *mask, unsigned n_words, int cpu) {
    if (cpu >= 0 && (unsigned)cpu < 64 * n_words) mask[cpu / 64] |= 1ul << cpu % 64;
}

/* GPUSIM_AFFINITY is "0-3,8;4-7": a list of CPUs for each card. Without it CPUs are dealt round. */
API Result nvmlDeviceGetCpuAffinity(Device *device, unsigned n_words, unsigned long *mask) {
    char field[512], *rest;
    REQUIRE_DEVICE(device);
    if (knob("GPUSIM_NO_AFFINITY", 0)) return NOT_SUPPORTED; /* as in some containers */
    memset(mask, 0, n_words * sizeof *mask);
    const char *list = knob_field("GPUSIM_AFFINITY", device->card, field, sizeof field);
    if (!list) {
        int first = device->card % n_cpus(), step = n_cards() > n_cpus() ? n_cpus() : n_cards();
        for (int cpu = first; cpu < n_cpus(); cpu += step) set_cpu(mask, n_words, cpu);
        return SUCCESS;
    }
    for (;; list = rest + 1) {
        long first = strtol(list, &rest, 10), last = *rest == '-' ? strtol(rest + 1, &rest, 10) : first;
        for (long cpu = first; cpu <= last; cpu++) set_cpu(mask, n_words, (int)cpu);
        if (*rest != ',') return SUCCESS;
    }
}

API Result nvmlDeviceGetCpuAffinityWithinScope(Device *device, unsigned n, unsigned long *mask, int scope) {
    return nvmlDeviceGetCpuAffinity(device, n, mask);
}

API Result nvmlDeviceGetMemoryAffinity(Device *device, unsigned n_words, unsigned long *mask, int scope) {
    REQUIRE_DEVICE(device);
    memset(mask, 0, n_words * sizeof *mask);
    mask[0] = 1;
    return SUCCESS;
}

API Result nvmlDeviceGetTopologyCommonAncestor(Device *one, Device *other, int *level) {
    REQUIRE_DEVICE(one);
    REQUIRE_DEVICE(other);
    *level = one->card == other->card ? 0 : 10;
    return SUCCESS;
}

API Result nvmlDeviceGetNvLinkState(Device *device, unsigned link, int *active) {
    REQUIRE_DEVICE(device);
    *active = n_cards() > 1 && link < (unsigned)knob("GPUSIM_NVLINKS", 0);
    return SUCCESS;
}

API Result nvmlDeviceGetNvLinkVersion(Device *device, unsigned link, unsigned *version) {
    REQUIRE_DEVICE(device);
    *version = 4;
    return SUCCESS;
}

/* ---- processes ---- */

struct process_v1 {
    unsigned pid;
    unsigned long long bytes;
};

struct process_v2 {
    unsigned pid;
    unsigned long long bytes;
    unsigned gpu_instance, compute_instance;
};

/* As NVML: the number of processes always, the processes themselves if there is room for them */
#define LISTS_PROCESSES(name, process, ...)                                                        \
    API Result name(Device *device, unsigned *n, struct process *answer) {                         \
        struct holder holders[MAX_HOLDERS];                                                        \
        REQUIRE_DEVICE(device);                                                                    \
        unsigned room = *n;                                                                        \
        *n = list_holders(device->card, device->instance, holders);                                \
        if (*n && (!answer || room < *n)) return INSUFFICIENT_SIZE;                                \
        for (unsigned i = 0; i < *n; i++)                                                          \
            answer[i] = (struct process){holders[i].pid, holders[i].bytes, ##__VA_ARGS__};         \
        return SUCCESS;                                                                            \
    }

LISTS_PROCESSES(nvmlDeviceGetComputeRunningProcesses, process_v1)
LISTS_PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, process_v2, device->instance, device->instance)
ALSO(nvmlDeviceGetComputeRunningProcesses_v2, nvmlDeviceGetComputeRunningProcesses_v3)

API Result nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *n, void *answer) {
    REQUIRE_DEVICE(device);
    *n = 0;
    return SUCCESS;
}
ALSO(nvmlDeviceGetGraphicsRunningProcesses_v2, nvmlDeviceGetGraphicsRunningProcesses_v3)
ALSO(nvmlDeviceGetGraphicsRunningProcesses, nvmlDeviceGetGraphicsRunningProcesses_v3)
