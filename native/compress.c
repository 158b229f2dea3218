/* compress.c: compressed panels, in which codes of zeros are not stored. formats/panels.md has the pictures,
 * quants/panels_compressed.py is the twin.
 *
 * In three steps, because sizes must be known before memory is reserved: el_compressed_scan counts (any range of groups, in
 * parallel), el_compressed_place says where each group goes, el_pack_compressed writes (in parallel again).
 */
#include <stdlib.h>

#include "compressed.h"

enum { ROWS = EL_PANEL_ROWS, LINE = EL_CODE_LINE };

static int tile_bytes(int type, int n_lines) { return EL_TILE_SCALES + (type == EL_TYPE_Q8_0 ? n_lines : n_lines / 2) * LINE; }

/* The lines of a tile of panels as unsigned codes (n_lines, 16, 4). Rows from n_rows on, which pad, count as zeros. */
static void codes_of(int type, const uint8_t *tile, int n_lines, int n_rows, uint8_t *codes) {
    const uint8_t *lines = tile + EL_TILE_SCALES;
    int n = n_lines * LINE;
    if (type == EL_TYPE_Q8_0)
        for (int i = 0; i < n; i++) codes[i] = lines[i] ^ 0x80;
    else
        for (int i = 0; i < n / 2; i++) codes[i] = lines[i] & 15, codes[n / 2 + i] = lines[i] >> 4;
    for (int j = 0; n_rows < ROWS && j < n_lines; j++) memset(codes + j * LINE + 4 * n_rows, el_zero_code(type), (size_t)(4 * (ROWS - n_rows)));
}

static void lines_of(int type, const uint8_t *codes, int n_lines, uint8_t *tile) {
    uint8_t *lines = tile + EL_TILE_SCALES;
    int n = n_lines * LINE;
    if (type == EL_TYPE_Q8_0)
        for (int i = 0; i < n; i++) lines[i] = codes[i] ^ 0x80;
    else
        for (int i = 0; i < n / 2; i++) lines[i] = (uint8_t)(codes[i] | codes[n / 2 + i] << 4);
}

static int count_line(const uint8_t *line, uint8_t zero) {
    int n = 0;
    for (int i = 0; i < LINE; i++) n += line[i] != zero;
    return n;
}

/* Bytes of the tile behind its scales */
static int64_t count_tile(int type, const uint8_t *codes, int n_lines) {
    uint8_t zero = (uint8_t)el_zero_code(type);
    int64_t n = (int64_t)EL_MASK_BYTES * n_lines;
    for (int j = 0; j < n_lines; j += 2) {
        int even = count_line(codes + j * LINE, zero), odd = count_line(codes + (j + 1) * LINE, zero);
        n += type == EL_TYPE_Q8_0 ? even + odd : even > odd ? even : odd;
    }
    return n;
}

/* What el_k.squeeze does where no level has it */
static int squeeze(const uint8_t *line, int zero, uint64_t *mask, uint8_t *values) {
    uint8_t found[LINE + 1];
    int n = 0;
    *mask = 0;
    for (int i = 0; i < LINE; i++) { /* without a branch, as in el_expand_line */
        int live = line[i] != zero;
        found[n] = line[i];
        n += live;
        *mask |= (uint64_t)live << i;
    }
    memcpy(values, found, LINE);
    return n;
}

/* A tile behind its scales; `out` has room for the longest. Returns where it ends. */
static uint8_t *write_tile(int type, const uint8_t *codes, int n_lines, uint8_t *out) {
    int (*const one)(const uint8_t *, int, uint64_t *, uint8_t *) = el_k.squeeze ? el_k.squeeze : squeeze;
    uint8_t *values = out + EL_MASK_BYTES * n_lines, found[2][LINE];
    for (int j = 0; j < n_lines; j += 2) {
        uint64_t mask[2];
        int n[2];
        for (int h = 0; h < 2; h++) n[h] = one(codes + (j + h) * LINE, el_zero_code(type), mask + h, found[h]);
        memcpy(out + j * EL_MASK_BYTES, mask, sizeof mask);
        if (type == EL_TYPE_Q8_0) {
            memcpy(values, found[0], LINE);
            memcpy(values + n[0], found[1], LINE);
            values += n[0] + n[1];
            continue;
        }
        int both = n[0] < n[1] ? n[0] : n[1], longer = n[0] + n[1] - both;
        for (int i = 0; i < LINE; i++) values[i] = (uint8_t)(found[0][i] | found[1][i] << 4);
        for (int i = both; i < longer; i++) values[i] = (uint8_t)(i < n[0] ? found[0][i] : found[1][i] << 4);
        values += longer;
    }
    return values;
}

static int64_t lines_at(int64_t k, int64_t at) { return k - at < 64 ? 8 : 16; }

/* Bytes of a group's stream, a multiple of 64; `out`, where there is one, gets it. */
static int64_t group_stream(int type, const uint8_t *tile, int n_rows, int64_t k, uint8_t *out) {
    uint8_t codes[EL_TILE_LINES * LINE];
    int64_t n = 0;
    for (int64_t at = 0; at < k; at += 64) {
        int n_lines = (int)lines_at(k, at);
        codes_of(type, tile, n_lines, n_rows, codes);
        if (out) {
            uint8_t whole[EL_COMPRESSED_PAD]; /* a stream has no room for more than its codes */
            memcpy(whole, tile, EL_TILE_SCALES);
            int64_t bytes = write_tile(type, codes, n_lines, whole + EL_TILE_SCALES) - whole;
            memcpy(out + n, whole, (size_t)bytes);
            n += bytes;
        } else n += EL_TILE_SCALES + count_tile(type, codes, n_lines);
        tile += tile_bytes(type, n_lines);
    }
    int64_t whole = (n + LINE - 1) / LINE * LINE;
    if (out) memset(out + n, 0, (size_t)(whole - n));
    return whole;
}

/* ---- matrices -------------------------------------------------------------------------------------------------- */
typedef struct {
    int64_t row_bytes, group_bytes; /* of rows, and of a group as panels */
    int64_t n_groups, index_bytes;
} shape;

static int shape_of(int type, int64_t rows, int64_t k, shape *s) {
    if (!el_has_compressed(type) || rows < 1 || k < 1 || k > INT32_MAX || el_panel_bytes(type, rows, k) < 0) return 0;
    s->row_bytes = el_row_bytes(type, k);
    s->group_bytes = el_panel_bytes(type, ROWS, k);
    s->n_groups = rows / ROWS + (rows % ROWS != 0);
    if (s->row_bytes > INT64_MAX / rows || s->n_groups > INT64_MAX / 64) return 0;
    s->index_bytes = (s->n_groups * (int64_t)sizeof(el_stream) + LINE - 1) / LINE * LINE;
    return 1;
}

static int rows_ok(const void *p, int64_t rows, int64_t row0, int64_t row1) {
    return p && row0 >= 0 && row1 >= row0 && row1 <= rows && row0 % ROWS == 0 && (row1 % ROWS == 0 || row1 == rows);
}

int64_t el_compressed_index_bytes(int type, int64_t rows, int64_t k) {
    shape s;
    return shape_of(type, rows, k, &s) ? s.index_bytes : -1;
}

/* The stream of up to 16 rows, from r on; `panels` has room for a group. Its bytes, or -1 */
static int64_t rows_stream(int type, const shape *s, const uint8_t *src, int64_t r, int64_t row1, int64_t k, uint8_t *panels,
                           uint8_t *out) {
    int64_t n_rows = row1 - r < ROWS ? row1 - r : ROWS;
    if (el_pack_panels(type, src + r * s->row_bytes, panels, n_rows, k, 0, n_rows) != EL_OK) return -1;
    return group_stream(type, panels, (int)n_rows, k, out);
}

static uint8_t *record_of(void *index, int64_t row) { return (uint8_t *)index + row / ROWS * (int64_t)sizeof(el_stream); }

/* Scans, or packs where `index` has the offsets already */
static int all_streams(int type, const void *src, void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1, int pack) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !index || !rows_ok(src, rows, row0, row1)) return EL_E_ARGUMENT;
    uint8_t *panels = malloc((size_t)s.group_bytes);
    int status = panels ? EL_OK : EL_E_NOMEM;
    for (int64_t r = row0; r < row1 && status == EL_OK; r += ROWS) {
        uint8_t *record = record_of(index, r);
        el_stream found = el_load_stream(record);
        int64_t n = rows_stream(type, &s, src, r, row1, k, panels, pack ? record + found.at : NULL);
        if (n < 0) status = EL_E_ARGUMENT;
        else if (!pack) {
            found = (el_stream){0, (uint64_t)n};
            memcpy(record, &found, sizeof found);
        }
    }
    free(panels);
    return status;
}

int el_compressed_scan(int type, const void *src, void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1) {
    return all_streams(type, src, index, rows, k, row0, row1, 0);
}

int el_pack_compressed(int type, const void *src, void *dst, int64_t rows, int64_t k, int64_t row0, int64_t row1) {
    return all_streams(type, src, dst, rows, k, row0, row1, 1);
}

int64_t el_compressed_place(int type, void *index, int64_t rows, int64_t k) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !index) return -1;
    int64_t at = s.index_bytes, used = s.n_groups * (int64_t)sizeof(el_stream);
    memset((uint8_t *)index + used, 0, (size_t)(at - used));
    for (int64_t g = 0; g < s.n_groups; g++) {
        uint8_t *record = record_of(index, g * ROWS);
        el_stream found = el_load_stream(record);
        if (found.bytes % LINE || found.bytes > (uint64_t)(INT64_MAX - EL_COMPRESSED_PAD - at)) return -1;
        found.at = (uint64_t)(at - g * (int64_t)sizeof found);
        memcpy(record, &found, sizeof found);
        at += (int64_t)found.bytes;
    }
    return at + EL_COMPRESSED_PAD;
}

int64_t el_compressed_sample(int type, const void *src, int64_t rows, int64_t k, int64_t n_groups, int64_t *bytes) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !src || !bytes || n_groups < 1) return -1;
    uint8_t *panels = malloc((size_t)s.group_bytes);
    if (!panels) return -1;
    if (n_groups > s.n_groups) n_groups = s.n_groups;
    *bytes = 0;
    for (int64_t i = 0; i < n_groups; i++) {
        int64_t r = (s.n_groups / n_groups * i + s.n_groups % n_groups * i / n_groups) * ROWS;
        *bytes += rows_stream(type, &s, src, r, rows, k, panels, NULL);
    }
    free(panels);
    return n_groups * s.group_bytes;
}

int el_compressed_bind(int type, const void *panels, int64_t bytes, int64_t rows, int64_t k, void *index) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !panels || !index || bytes < EL_COMPRESSED_PAD) return EL_E_ARGUMENT;
    int64_t end = bytes - EL_COMPRESSED_PAD, used = s.n_groups * (int64_t)sizeof(el_stream);
    if (used > end) return EL_E_ARGUMENT;
    memcpy(index, panels, (size_t)used); /* first: the file may change under us */
    for (int64_t g = 0; g < s.n_groups; g++) {
        int64_t start = g * (int64_t)sizeof(el_stream);
        uint64_t room = (uint64_t)(end - start);
        el_stream found = el_load_stream((const uint8_t *)index + start);
        if (found.at > room || found.bytes > room - found.at) return EL_E_ARGUMENT;
        found.at = (uint64_t)(uintptr_t)((const uint8_t *)panels + start + (int64_t)found.at);
        memcpy((uint8_t *)index + start, &found, sizeof found);
    }
    return EL_OK;
}

/* One group as panels */
static void expand_group(int type, el_walk walk, int64_t k, uint8_t *out) {
    uint8_t codes[EL_TILE_LINES * LINE];
    for (int64_t at = 0; at < k; at += 64) {
        int n_lines = (int)lines_at(k, at);
        const uint8_t *tile = el_tile_at(walk);
        memcpy(out, tile, EL_TILE_SCALES);
        walk.tile = el_expand_tile(type, n_lines, tile, codes);
        lines_of(type, codes, n_lines, out);
        out += tile_bytes(type, n_lines);
    }
}

int el_compressed_expand(int type, const void *index, int64_t rows, int64_t k, int64_t row0, int64_t row1, void *dst) {
    shape s;
    if (!shape_of(type, rows, k, &s) || !dst || !rows_ok(index, rows, row0, row1)) return EL_E_ARGUMENT;
    for (int64_t r = row0; r < row1; r += ROWS)
        expand_group(type, el_walk_group(index, r / ROWS), k, (uint8_t *)dst + (r - row0) / ROWS * s.group_bytes);
    return EL_OK;
}

int el_compressed_row(int type, const void *index, int64_t rows, int64_t k, int64_t row, float *dst) {
    shape s;
    uint8_t codes[EL_TILE_LINES * LINE];
    if (!shape_of(type, rows, k, &s) || !index || !dst || row < 0 || row >= rows) return EL_E_ARGUMENT;
    el_walk walk = el_walk_group(index, row / ROWS);
    int r = (int)(row % ROWS);
    for (int64_t at = 0; at < k; at += 64) {
        int n_lines = (int)lines_at(k, at);
        const uint8_t *tile = el_tile_at(walk);
        walk.tile = el_expand_tile(type, n_lines, tile, codes);
        for (int i = 0; i < 4 * n_lines; i++) {
            uint16_t scale;
            memcpy(&scale, tile + i / 32 * 32 + 2 * r, 2);
            dst[at + i] = el_f16_to_f32(scale) * (float)(codes[i / 4 * LINE + 4 * r + i % 4] - el_zero_code(type));
        }
    }
    return EL_OK;
}
