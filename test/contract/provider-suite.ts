import { randomUUID } from 'node:crypto';
import { beforeAll, describe, expect, test } from 'vitest';
import type { Lease, Task } from '../../src/domain/model.ts';
import type { Tool, ToolTier } from '../../src/domain/policy.ts';
import { targetOf } from '../../src/domain/provider.ts';
import type { Grant, HeldAtTarget, Material, Provider, TargetProvider } from '../../src/domain/provider.ts';

/** What a provider's test file brings: the provider, and the means to ask the real thing. */
export interface ProviderHarness {
  provider: Provider;
  tier: ToolTier;
  /** Ground truth: whether the real thing accepts the credential now. */
  accepted(material: Material): Promise<boolean>;
  /** When the real thing will refuse it by itself, in milliseconds. Absent: it is told when, and does not know before. */
  expiry?(material: Material): Promise<number>;
}

export interface TargetProviderHarness extends ProviderHarness {
  provider: TargetProvider;
  /** The provider set up against a target that cannot be reached. */
  unreachable(): TargetProvider;
}

export const signal = (ms = 20_000) => AbortSignal.timeout(ms);

export function newLeaseId(): string {
  const time = Date.now().toString(16).padStart(12, '0');
  return `lse_${time}${randomUUID().replaceAll('-', '').slice(12)}`;
}

/** A decided grant for a new lease; the handle is the provider's own. */
export function makeGrant(provider: Provider, tier: ToolTier, change: Partial<Lease> = {}): Grant {
  const issuedAt = Date.now();
  const leaseId = change.leaseId ?? newLeaseId();
  const lease: Lease = {
    tenant: 'default',
    leaseId,
    taskId: `tsk_${randomUUID().replaceAll('-', '')}`,
    requestId: randomUUID(),
    agent: 'reporter',
    workload: 'spiffe://example.org/agent/reporter',
    tool: 'orders',
    tier: 'read',
    provider: provider.kind,
    handle: provider.selfContained ? leaseId : provider.handle(leaseId, tier),
    state: 'pending',
    outcome: undefined,
    revocationKind: tier.revocation,
    issuedAt,
    expiresAt: issuedAt + 300_000,
    settledAt: undefined,
    deadBy: undefined,
    renewedFrom: undefined,
    renewalCount: 0,
    lineStartedAt: issuedAt,
    policyRevision: 'sha256:00',
    policyRule: 'test/rule',
    settleCause: undefined,
    settleAttempts: 0,
    settleError: undefined,
    ...change,
  };
  const task: Task = {
    tenant: 'default',
    taskId: lease.taskId,
    rootTaskId: lease.taskId,
    parentTaskId: undefined,
    intent: 'monthly report',
    agent: lease.agent,
    opener: 'spiffe://example.org/orchestrator',
    agentWorkload: lease.workload,
    tools: [{ tool: lease.tool, tier: lease.tier }],
    context: {},
    labels: {},
    state: 'open',
    closeCause: undefined,
    openedAt: issuedAt,
    deadline: issuedAt + 3_600_000,
    closedAt: undefined,
    settledAt: undefined,
    heartbeatInterval: undefined,
    heartbeatDue: undefined,
    epoch: 1,
    statusIndex: 131_080,
  };
  const tool: Tool = {
    name: lease.tool,
    owner: 'data-team',
    description: '',
    resource: 'https://orders.example.org',
    labels: {},
    workloads: [],
    tiers: { read: tier },
  };
  return { lease, task, tool, tier };
}

/** As the broker does it: what has to be known first, the credential, and the handle under which it is found. */
export async function issue(provider: Provider, grant: Grant): Promise<Material> {
  if (provider.selfContained) return provider.sign(grant);
  const { lease } = grant;
  if (provider.prepare !== undefined) lease.handle = await provider.prepare(grant, signal());
  const made = await provider.issue(grant, signal());
  lease.handle = made.handle ?? lease.handle;
  lease.expiresAt = Math.min(lease.expiresAt, made.expiresAt ?? Infinity);
  return made.material;
}

/** The part of a credential that nobody but its agent may see. */
export function secretOf(material: Material): string {
  if (material.kind === 'postgres_login') return material.password;
  if (material.kind === 'access_token') return material.token;
  throw new Error(`no secret is known in ${JSON.stringify(Object.keys(material))}`);
}

/** Everything that a target holds, through its pages. */
export async function inventoryOf(provider: TargetProvider, target: string, pageSize: number): Promise<HeldAtTarget[]> {
  const found: HeldAtTarget[] = [];
  let after: string | undefined;
  do {
    const page = await provider.inventory!.list(target, after, pageSize, signal());
    found.push(...page.held);
    after = page.next;
  } while (after !== undefined);
  expect(new Set(found.map(({ handle }) => handle)).size).toBe(found.length);
  return found;
}

export async function failure(work: () => unknown): Promise<Error & { reason?: string; cause?: unknown }> {
  try {
    await work();
  } catch (error) {
    return error as Error;
  }
  throw new Error('it did not fail');
}

/** What the real thing is like, where it decides what can be asked of it. */
export interface Nature {
  reissue: TargetProvider['reissue'];
  /** Whether the real thing ends each credential at the end of its lease, even if the broker never comes back. */
  knowsTheEnd: boolean;
}

const usual: Nature = { reissue: 'replaces', knowsTheEnd: true };

/** What every provider has to do. */
export function providerSuite(name: string, setup: () => Promise<ProviderHarness>, nature: Nature = usual): void {
  describe(`provider ${name}`, () => {
    let harness: ProviderHarness;
    beforeAll(async () => {
      harness = await setup();
    });

    test('a credential that it makes is accepted by the real thing', async () => {
      expect(await harness.accepted(await issue(harness.provider, makeGrant(harness.provider, harness.tier)))).toBe(
        true,
      );
    });

    testIf(nature.knowsTheEnd)('a credential ends with its lease, by itself', async () => {
      const grant = makeGrant(harness.provider, harness.tier);
      const material = await issue(harness.provider, grant);
      const expiry = await harness.expiry!(material);
      expect(expiry).toBeLessThanOrEqual(grant.lease.expiresAt);
      expect(expiry).toBeGreaterThan(grant.lease.expiresAt - 1001);
    });

    testIf(nature.reissue === 'replaces')(
      'asked again for the same lease it gives an equivalent credential that works',
      async () => {
        const grant = makeGrant(harness.provider, harness.tier);
        const first = await issue(harness.provider, grant);
        const again = await issue(harness.provider, grant);
        expect(await harness.accepted(again)).toBe(true);
        expect(await harness.expiry?.(again)).toBe(await harness.expiry?.(first));
        expect(publicPart(again)).toEqual(publicPart(first));
      },
    );

    test('two leases never share a secret', async () => {
      const make = () => issue(harness.provider, makeGrant(harness.provider, harness.tier));
      const materials = await Promise.all(Array.from({ length: 8 }, make));
      expect(new Set(materials.map(secretOf)).size).toBe(8);
    });

    test('what it keeps to find a credential again holds no secret', async () => {
      const grant = makeGrant(harness.provider, harness.tier);
      const material = await issue(harness.provider, grant);
      expect(grant.lease.handle).not.toContain(secretOf(material));
      expect(grant.lease.handle.length).toBeLessThanOrEqual(200);
    });
  });
}

/** What a provider with a target has to do besides. */
export function targetProviderSuite(
  name: string,
  setup: () => Promise<TargetProviderHarness>,
  nature: Nature = usual,
): void {
  providerSuite(name, setup, nature);

  describe(`target provider ${name}`, () => {
    let harness: TargetProviderHarness;
    beforeAll(async () => {
      harness = await setup();
    });

    test('revokes so that the real thing refuses, and returns only then', async () => {
      const { provider } = harness;
      const grant = makeGrant(provider, harness.tier);
      const material = await issue(provider, grant);
      expect(await provider.exists(grant.lease.handle, signal())).toBe(true);
      await provider.revoke(grant.lease.handle, signal());
      expect(await harness.accepted(material)).toBe(false);
      expect(await provider.exists(grant.lease.handle, signal())).toBe(false);
    });

    testIf(nature.reissue === 'anew')(
      'made anew for an active lease, the earlier credential is dead and the new one works',
      async () => {
        const { provider } = harness;
        const grant = makeGrant(provider, harness.tier);
        const first = await issue(provider, grant);
        grant.lease.state = 'active';
        const again = await issue(provider, grant);
        expect(await harness.accepted(again)).toBe(true);
        expect(await harness.accepted(first)).toBe(false);
        await provider.revoke(grant.lease.handle, signal());
        expect(await harness.accepted(again)).toBe(false);
      },
    );

    test('revoking twice, at once from several sides, and what never was, all succeed', async () => {
      const { provider } = harness;
      const grant = makeGrant(provider, harness.tier);
      const material = await issue(provider, grant);
      await Promise.all(Array.from({ length: 4 }, () => provider.revoke(grant.lease.handle, signal())));
      await provider.revoke(grant.lease.handle, signal());
      await provider.revoke(provider.handle(newLeaseId(), harness.tier), signal());
      expect(await harness.accepted(material)).toBe(false);
    });

    test('what its targets hold can be listed page by page and looked up, and shows each credential while it lives', async () => {
      const { provider } = harness;
      const { inventory } = provider;
      if (inventory === undefined) return;
      const grants = Array.from({ length: 4 }, () => makeGrant(provider, harness.tier));
      for (const grant of grants) await issue(provider, grant);
      const handles = grants.map(({ lease }) => lease.handle);
      const target = targetOf(handles[0]!);
      expect(inventory.targets()).toContain(target);
      const found = await inventoryOf(provider, target, 3);
      for (const { lease } of grants) {
        const held = found.filter(({ leaseId, taskId }) => leaseId === lease.leaseId || taskId === lease.taskId);
        expect(held).toHaveLength(1);
        // The clock of a target may be coarse; what is young must never look old.
        expect(Math.abs((held[0]!.madeAt ?? Date.now()) - lease.issuedAt)).toBeLessThan(86_400_000);
      }
      const gone = handles.pop()!;
      await provider.revoke(gone, signal());
      expect(await inventory.present(target, [...handles, gone], signal())).toEqual(new Set(handles));
    });

    test('a target that cannot be reached gives PROVIDER_UNAVAILABLE in bounded time, for every operation', async () => {
      const provider = harness.unreachable();
      try {
        // What is to be revoked was made while it could be reached.
        const grant = makeGrant(harness.provider, harness.tier);
        await issue(harness.provider, grant);
        for (const work of [
          () => issue(provider, makeGrant(provider, harness.tier)),
          () => provider.revoke(grant.lease.handle, signal()),
          () => provider.exists(grant.lease.handle, signal()),
        ]) {
          expect((await failure(work)).reason).toBe('PROVIDER_UNAVAILABLE');
        }
        expect((await provider.check(signal())).map(({ ready }) => ready)).toEqual([false]);
        await harness.provider.revoke(grant.lease.handle, signal());
      } finally {
        await provider.close();
      }
    });

    test('a call whose caller has given up ends at once and does nothing', async () => {
      const { provider } = harness;
      const grant = makeGrant(provider, harness.tier);
      if (provider.prepare !== undefined) grant.lease.handle = await provider.prepare(grant, signal());
      await failure(() => provider.issue(grant, AbortSignal.abort(new Error('gone'))));
      expect(await provider.exists(grant.lease.handle, signal())).toBe(false);
    });
  });
}

/** A test that has no meaning for a provider is not one of its tests, rather than one that is skipped. */
function testIf(applies: boolean) {
  return (name: string, work: () => Promise<void>): void => void (applies && test(name, work));
}

function publicPart(material: Material): object {
  if (material.kind === 'postgres_login') return { ...material, password: '' };
  if (material.kind !== 'access_token') return {};
  const claims = Buffer.from(material.token.split('.')[1]!, 'base64url').toString();
  return { claims: JSON.parse(claims) as unknown };
}
