import { describe, expect, test } from 'vitest';
import { events } from '../../src/observability/events.ts';
import { createObservability } from '../../src/observability/observability.ts';
import { redact } from '../../src/observability/redact.ts';
import { readTraceparent, traceFields } from '../../src/observability/trace.ts';

const jwt = 'eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl';

function observe(options: { level?: 'debug' | 'info'; format?: 'json' | 'text' } = {}) {
  const lines: string[] = [];
  const observability = createObservability({
    level: options.level ?? 'debug',
    format: options.format ?? 'json',
    write: (line) => lines.push(line),
    now: () => 0,
  });
  return { ...observability, lines };
}

describe('an event', () => {
  test('is logged and counted as its row says, and nothing else', async () => {
    const { emit, lines, metrics } = observe();
    emit('lease.settled', {
      tenant: 'default',
      taskId: 'tsk_1',
      leaseId: 'lse_1',
      tool: 'reports',
      tier: 'read',
      provider: 'jwt',
      target: '',
      outcome: 'revoked',
      cause: 'closed',
      attempts: 1,
    });
    expect(JSON.parse(lines[0]!)).toMatchObject({
      time: '1970-01-01T00:00:00.000Z',
      level: 'debug',
      event: 'lease.settled',
      message: events['lease.settled'].line,
      leaseId: 'lse_1',
    });
    expect(await metrics()).toContain(
      'leasehold_leases_settled_total{provider="jwt",outcome="revoked",cause="closed"} 1',
    );
  });

  test('below the level is counted and not logged', async () => {
    const { emit, lines, logs, metrics } = observe({ level: 'info' });
    emit('flush.committed', { rows: 3, durationMs: 1 });
    expect([lines.length, logs('flush.committed'), logs('task.opened')]).toEqual([0, false, true]);
    expect(await metrics()).toContain('leasehold_flushes_total 1');
  });

  test('cannot forge a second line in text form', () => {
    const { emit, lines } = observe({ format: 'text' });
    emit('config.loaded', { file: 'a\n1970-01-01T00:00:00.000Z ERROR forged' });
    expect(lines).toHaveLength(1);
    expect(lines[0]!.trimEnd().split('\n')).toHaveLength(1);
  });
});

describe('a secret that a call site hands over anyway', () => {
  test.each([
    ['a JWT in a sentence', { note: `got ${jwt} from` }, jwt],
    ['a value under a telling key', { password: 'hunter2', deep: { clientSecret: 'hunter2' } }, 'hunter2'],
    ['a header', { line: 'authorization: Bearer abcdefghijklmnop' }, 'abcdefghijklmnop'],
    ['a connection string', { url: 'postgres://u:hunter2@db/x' }, 'hunter2'],
    ['an assignment', { text: 'failed with password=hunter2; retry' }, 'hunter2'],
    ['an error with a cause', { error: new Error('a', { cause: new Error('token=hunter2') }) }, 'hunter2'],
    ['what a driver hangs on its error', { error: Object.assign(new Error('a'), { detail: 'hunter2' }) }, 'hunter2'],
    ['a private key', { pem: '-----BEGIN PRIVATE KEY-----\nhunter2\n-----END PRIVATE KEY-----' }, 'hunter2'],
    ['bytes', { material: Buffer.from('hunter2') }, 'hunter2'],
  ])('%s is not written', (_name, fields, secret) => {
    expect(JSON.stringify(redact(fields))).not.toContain(secret);
  });

  test('what is no secret stays, in bounded size', () => {
    const cyclic: Record<string, unknown> = { taskId: 'tsk_1', attempts: 3, at: new Date(0) };
    cyclic['self'] = cyclic;
    expect(redact(cyclic)).toMatchObject({ taskId: 'tsk_1', attempts: 3, at: '1970-01-01T00:00:00.000Z' });
    expect(JSON.stringify(redact({ text: 'x'.repeat(100_000) })).length).toBeLessThan(5_000);
  });
});

test('a traceparent is taken over only when it is well-formed', () => {
  const good = '00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01';
  expect(traceFields(readTraceparent(good))).toEqual({
    traceId: '0af7651916cd43dd8448eb211c80319c',
    spanId: 'b7ad6b7169203331',
  });
  for (const bad of ['', 'x', good.toUpperCase(), `ff${good.slice(2)}`, `00-${'0'.repeat(32)}-b7ad6b7169203331-01`]) {
    expect(readTraceparent(bad)).toBeUndefined();
  }
});
