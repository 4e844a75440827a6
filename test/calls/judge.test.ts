import { expect, test } from 'vitest';
import { canonicalJson } from '../../src/domain/calls/canonical-json.ts';
import { argumentsOfCall } from '../../src/domain/calls/call-arguments.ts';
import { violationsOf, type JudgedCall } from '../../src/domain/calls/violations.ts';
import type { Lease, Task } from '../../src/domain/model.ts';
import type { ToolTier } from '../../src/domain/policy.ts';
import { leaseOf, taskOf } from '../support/storage.ts';

const at = 1_800_000_000_000;
const minute = 60_000;
const task = { ...taskOf(), state: 'open', closedAt: undefined } as unknown as Task;
const lease = leaseOf(task, { issuedAt: at - minute, expiresAt: at + minute });
const tier = { actions: ['reports.read'] } as unknown as ToolTier;

function judged(change: Partial<JudgedCall> = {}) {
  return violationsOf({
    reporter: 'agent',
    task,
    leaseId: lease.leaseId,
    lease,
    tool: 'reports',
    tier: 'read',
    registered: tier,
    action: 'reports.read',
    arguments: undefined,
    argumentsDigest: undefined,
    usedBy: lease.workload,
    startedAt: at,
    receivedAt: at,
    about: undefined,
    ...change,
  });
}

test('a lease is good from its issue to its end, whatever ended it', () => {
  const ended = (change: Partial<Lease>, times: Partial<JudgedCall> = {}) =>
    judged({ lease: { ...lease, ...change }, ...times }).includes('lease_ended');
  expect(ended({})).toBe(false);
  expect(ended({ expiresAt: at - 1 })).toBe(true);
  expect(ended({ expiresAt: at })).toBe(false);
  // Superseded and still in its overlap.
  expect(ended({ settleCause: 'superseded' })).toBe(false);
  expect(ended({ state: 'settled', settleCause: 'superseded', settledAt: at - 1 })).toBe(true);
  // Given back, not yet gone from its target.
  expect(ended({ state: 'settling', settleCause: 'returned' }, { startedAt: at, receivedAt: at + 1 })).toBe(false);
  // The settler looks at what has expired: that did not end it earlier.
  expect(ended({ state: 'settled', settleCause: 'expired', settledAt: at + 5, expiresAt: at + 1 })).toBe(false);
  const closed = { ...task, closedAt: at - 5, state: 'closing' } as Task;
  expect(judged({ task: closed, lease: { ...lease, state: 'settling', settleCause: 'closed' } })).toEqual([
    'lease_ended',
    'task_ended',
  ]);
});

test("an agent's word on when a call was counts for a minute, a tool's for as long as it is taken", () => {
  const gone = { ...lease, state: 'settled', settleCause: 'returned', settledAt: at } as Lease;
  const late = (reporter: 'agent' | 'tool', receivedAt: number) =>
    judged({ reporter, lease: gone, startedAt: at - 1, receivedAt });
  expect(late('agent', at + minute)).toEqual([]);
  expect(late('agent', at + minute + 1)).toEqual(['lease_ended']);
  expect(late('tool', at + 60 * minute)).toEqual([]);
  expect(judged({ reporter: 'tool', lease: gone, startedAt: at + 1, receivedAt: at + 2 })).toEqual(['lease_ended']);
});

test('what an argument was declared or limited to holds for the call', () => {
  const terms = {
    arguments: { values: { shop: 'acme' }, digest: 'sha256:0' },
    argumentLimits: { amount: { maximum: 10 } },
    renewNotBefore: undefined,
  };
  const bound = { ...lease, terms };
  const other = (args: Record<string, string | number>) => judged({ lease: bound, arguments: args });
  expect(other({ shop: 'acme', amount: 10, page: 3 })).toEqual([]);
  expect(other({ shop: 'other' })).toEqual(['other_arguments']);
  expect(other({ amount: 11 })).toEqual(['other_arguments']);
  expect(judged({ lease: bound, arguments: undefined })).toEqual([]);
  expect(other({ ['__proto__']: 'x', constructor: 'y' })).toEqual([]);
});

test('the tool and the agent are compared where both say something', () => {
  const about = {
    tool: 'reports',
    tier: 'read',
    leaseId: lease.leaseId,
    action: 'reports.read',
    argumentsDigest: 'a',
  } as const;
  const compared = (change: Partial<JudgedCall>, said: object = {}) =>
    judged({ reporter: 'tool', argumentsDigest: 'a', about: { ...about, ...said }, ...change });
  expect(compared({})).toEqual([]);
  expect(compared({}, { leaseId: undefined, argumentsDigest: undefined })).toEqual([]);
  expect(compared({ argumentsDigest: undefined })).toEqual([]);
  for (const said of [{ tier: 'write' }, { leaseId: 'lse_x' }, { action: 'x' }, { argumentsDigest: 'b' }]) {
    expect(compared({}, said)).toEqual(['contradicted']);
  }
});

test('a tier without a list of actions takes any; one that is not registered is judged by the rest', () => {
  expect(judged({ action: 'other' })).toEqual(['undeclared_action']);
  expect(judged({ action: 'other', registered: { actions: [] } as unknown as ToolTier })).toEqual([]);
  expect(judged({ action: 'other', registered: undefined })).toEqual([]);
});

test('canonical JSON is that of RFC 8785', () => {
  // §3.2.3 and the example of §3.2.2.
  expect(
    canonicalJson({
      numbers: [333333333.33333329, 1e30, 4.5, 2e-3, 1e-27, -0],
      string: '€$\u000f\nA\'B"\\\\"/',
      literals: [null, true, false],
    }),
  ).toBe(
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27,0],' +
      '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}',
  );
  // By UTF-16 code units: the emoji (U+1F600, a surrogate pair) comes before U+FB33.
  expect(canonicalJson({ '\ufb33': 1, '😀': 2, '\r': 3, 1: 4, é: 5 })).toBe('{"\\r":3,"1":4,"é":5,"😀":2,"\ufb33":1}');
  expect(() => canonicalJson({ a: '\ud800' })).toThrow(/well-formed/);
  expect(() => canonicalJson({ a: ['x'.repeat(17_000)] })).toThrow(/16384/);
});

test('of the arguments only what the tier declares, and in its type and limits, is kept', () => {
  const specs = {
    shop: { type: 'string', required: false, description: '', maxLength: 4 },
    amount: { type: 'integer', required: false, description: '', maximum: 10 },
  } as const;
  const kept = (values: Record<string, unknown>) => argumentsOfCall({ values }, specs, () => 'hash').declared;
  expect(kept({ shop: 'acme', amount: 3, other: 'x' })).toEqual({ shop: 'acme', amount: 3 });
  expect(kept({ shop: 'longer', amount: 11 })).toBeUndefined();
  expect(kept({ shop: 7, amount: 'three' })).toBeUndefined();
  expect(kept({ shop: { nested: 1 }, ['__proto__']: 'x' })).toBeUndefined();
  expect(argumentsOfCall({ digest: 'sha256:1' }, specs, () => 'hash')).toEqual({
    digest: 'sha256:1',
    declared: undefined,
    scalars: undefined,
  });
});
