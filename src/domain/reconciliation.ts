import type { AuditEvent, AuditKind } from './audit.ts';
import { BrokerError } from './errors.ts';
import type { Lease } from './model.ts';
import type { HeldAtTarget, Provider, TargetInventory, TargetProvider } from './provider.ts';
import { settleFields, type Emit } from './telemetry.ts';
import type { Clock, Instant, Millis } from './time.ts';
import { within } from './within.ts';

/** What a lease or task that a target names is to us. */
export type Known =
  | { as: 'open' }
  | { as: 'irrevocable' }
  | { as: 'settled'; tenant: string; taskId: string; leaseId: string | undefined };

export interface ReconcileStore {
  /** Takes a target for one comparison; answers with who has it already, or undefined. */
  begin(at: TargetKey, by: string, now: Instant, until: Instant): Promise<string | undefined>;
  /** The same for a periodic one: false when it is not due, or somebody is at it. */
  beginDue(at: TargetKey, by: string, now: Instant, until: Instant, every: Millis): Promise<boolean>;
  /** False: the claim had run out and somebody else has it. */
  extend(at: TargetKey, by: string, until: Instant): Promise<boolean>;
  /** Lets go of the target; without a result, it was not compared to the end. */
  end(at: TargetKey, by: string, now: Instant, result: { strays: number; missing: number } | undefined): Promise<void>;
  /** By lease id or task id, of any tenant: what is not in the map is unknown. */
  known(leaseIds: readonly string[], taskIds: readonly string[]): Promise<ReadonlyMap<string, Known>>;
  /** Active leases at a target, `after` being the last one of the page before. */
  active(at: TargetKey, after: Lease | undefined, limit: number): Promise<Lease[]>;
  /** The handles of those of these that are active now. */
  activeHandles(tenant: string, leaseIds: readonly string[]): Promise<ReadonlySet<string>>;
  record(events: readonly AuditEvent[]): Promise<void>;
}

export interface TargetKey {
  tenant: string;
  provider: string;
  target: string;
}

export interface Finding {
  kind: 'stray_unknown' | 'stray_settled' | 'missing';
  handle: string;
  leaseId: string | undefined;
  taskId: string | undefined;
  madeAt: Instant | undefined;
  settled: boolean;
  error: string | undefined;
}

export interface TargetResult {
  held: number;
  leases: number;
  strays: number;
  settled: number;
  missing: number;
  unmarked: number;
  young: number;
  irrevocable: number;
  error: string | undefined;
}

export type Step = { provider: string; target: string } & (
  | { step: 'progress'; held: number; leases: number }
  | { step: 'finding'; finding: Finding }
  | { step: 'result'; result: TargetResult }
);

export interface ReconcilerOptions {
  clock: Clock;
  providers: ReadonlyMap<string, Provider>;
  store: ReconcileStore;
  /** Whose a target is. */
  tenantOf: (kind: string, target: string) => string;
  /** Longest time that one revocation may take. */
  revokeTimeout: Millis;
  /** Undefined: only when somebody asks for it. */
  periodic: { every: Millis; settle: boolean } | undefined;
  newRequestId: () => string;
  emit: Emit;
}

export type Reconciler = ReturnType<typeof createReconciler>;

export interface ReconcileRequest {
  tenant: string;
  actor: string;
  requestId: string;
  target: string;
  settle: boolean;
}

const pageSize = 500;
const atOnce = 4;
/** A claim outlives what is done between two extensions of it. */
const claimFor: Millis = 120_000;
const betweenExtensions = 20;
const listTimeout: Millis = 30_000;
/**
 * What is younger is never called a stray. A pending lease is committed before its target is called, so even now it would be
 * found; but our database may just have failed over to a standby that lags, and clocks differ.
 */
const safeAge: Millis = 10 * 60_000;
/** An active lease that is younger may have been made on a target that has just failed over. */
const settledIn: Millis = 60_000;
const mostLogged = 100;

/** Compares our leases with what the targets really hold. Memory holds one page at a time. */
export function createReconciler(options: ReconcilerOptions) {
  const { clock, store, emit } = options;

  return {
    run: async function* (request: ReconcileRequest, signal: AbortSignal): AsyncIterable<Step> {
      const all = [...inventories()].filter(({ tenant }) => tenant === request.tenant);
      const asked = request.target;
      // `vault:east` may be called `east`, where that is nobody else's name.
      const exact = all.filter(({ target }) => asked === '' || target === asked);
      const chosen = exact.length > 0 ? exact : all.filter(({ target }) => target.endsWith(`:${asked}`));
      if (chosen.length === 0 && request.target !== '') {
        const names = all.map(({ target }) => target).join(', ');
        throw new BrokerError(
          'NAME_UNKNOWN',
          `target: no target ${request.target} is configured whose contents can be listed; there are: ${names || 'none'}`,
          { violations: [{ field: 'target', description: 'not a configured target' }] },
        );
      }
      for (const at of chosen) {
        if (signal.aborted) return;
        const key = { tenant: request.tenant, provider: at.provider.kind, target: at.target };
        const by = `${request.actor} ${request.requestId}`;
        const now = clock.now();
        const holder = await store.begin(key, by, now, now + claimFor);
        if (holder === undefined) {
          yield* compare(at, key, by, request, signal);
          continue;
        }
        const error = `IN_PROGRESS: ${holder.split(' ', 1)[0]} compares this target at the moment; try again later`;
        yield { ...named(key), step: 'result', result: { ...nothing(), error } };
      }
    },

    /** A periodic comparison of what is due; any replica does it. */
    tick: async (signal: AbortSignal): Promise<void> => {
      if (options.periodic === undefined) return;
      const { every, settle } = options.periodic;
      for (const at of inventories()) {
        const key = { tenant: at.tenant, provider: at.provider.kind, target: at.target };
        const request = {
          tenant: at.tenant,
          actor: 'broker',
          requestId: options.newRequestId(),
          target: '',
          settle,
        };
        const by = `broker ${request.requestId}`;
        const now = clock.now();
        if (signal.aborted || !(await store.beginDue(key, by, now, now + claimFor, every))) continue;
        // What it finds is in its events and in the table that the gauges are read from.
        try {
          for await (const step of compare(at, key, by, request, signal)) void step;
        } catch (error) {
          if (!signal.aborted) throw error;
        }
      }
    },
  };

  function* inventories(): Iterable<{
    provider: TargetProvider;
    inventory: TargetInventory;
    target: string;
    tenant: string;
  }> {
    for (const provider of options.providers.values()) {
      if (provider.selfContained || provider.inventory === undefined) continue;
      for (const target of provider.inventory.targets()) {
        yield { provider, inventory: provider.inventory, target, tenant: options.tenantOf(provider.kind, target) };
      }
    }
  }

  async function* compare(
    { provider, inventory }: { provider: TargetProvider; inventory: TargetInventory },
    key: TargetKey,
    by: string,
    request: ReconcileRequest,
    signal: AbortSignal,
  ): AsyncIterable<Step> {
    const result = nothing();
    const name = named(key);
    let complete = false;
    const keepClaim = async () => {
      if (await store.extend(key, by, clock.now() + claimFor)) return;
      throw new BrokerError('IN_PROGRESS', 'this comparison was too slow and another one has begun: look at that one');
    };
    try {
      for (let after: string | undefined; ;) {
        signal.throwIfAborted();
        await keepClaim();
        const page = await within(
          listTimeout,
          (bounded) => inventory.list(key.target, after, pageSize, bounded),
          signal,
        );
        for await (const finding of strays(provider, inventory, key, page.held, result, request, keepClaim, signal)) {
          yield { ...name, step: 'finding', finding };
        }
        yield { ...name, step: 'progress', held: result.held, leases: result.leases };
        after = page.next;
        if (after === undefined) break;
      }
      for (let last: Lease | undefined; ;) {
        signal.throwIfAborted();
        await keepClaim();
        const leases = await store.active(key, last, pageSize);
        result.leases += leases.length;
        for (const lease of await missing(inventory, key, leases, signal)) {
          if (result.missing < mostLogged) emit('lease.missing', settleFields(lease));
          result.missing += 1;
          yield { ...name, step: 'finding', finding: missingFinding(lease) };
        }
        yield { ...name, step: 'progress', held: result.held, leases: result.leases };
        if (leases.length < pageSize) break;
        last = leases.at(-1);
      }
      complete = true;
      const { strays: found, settled, missing: lost, held } = result;
      emit('reconcile.finished', { ...name, strays: found, settled, missing: lost, held });
    } catch (error) {
      if (signal.aborted) throw error;
      emit('reconcile.failed', { ...name, error });
      result.error = error instanceof Error ? error.message : String(error);
    } finally {
      const left = { strays: result.strays - result.settled, missing: result.missing };
      // When this fails too, the claim runs out.
      await store.end(key, by, clock.now(), complete ? left : undefined).catch((error: unknown) => {
        emit('storage.failed', { operation: 'reconcile', error });
      });
    }
    yield { ...name, step: 'result', result };
  }

  async function* strays(
    provider: TargetProvider,
    inventory: TargetInventory,
    key: TargetKey,
    held: readonly HeldAtTarget[],
    result: TargetResult,
    request: ReconcileRequest,
    keepClaim: () => Promise<void>,
    signal: AbortSignal,
  ): AsyncIterable<Finding> {
    result.held += held.length;
    const suspects = await suspectsAmong(key, held, result);
    if (suspects.length === 0) return;
    // A settlement that ran meanwhile has taken it away.
    const handles = suspects.map(({ handle }) => handle);
    const there = await within(listTimeout, (bounded) => inventory.present(key.target, handles, bounded), signal);
    const found = suspects.filter(({ handle }) => there.has(handle));
    for (const { handle, kind } of found) {
      if (result.strays < mostLogged) emit('stray.found', { ...named(key), handle, why: whyOf(kind) });
      result.strays += 1;
    }
    if (!request.settle) {
      yield* found;
      return;
    }
    for (let from = 0; from < found.length; from += betweenExtensions) {
      signal.throwIfAborted();
      await keepClaim();
      const some = found.slice(from, from + betweenExtensions);
      await store.record(some.map((finding) => strayEvent('stray.found', finding, key, request)));
      const done: Finding[] = [];
      for (let next = 0; next < some.length; next += atOnce) {
        done.push(
          ...(await Promise.all(
            some.slice(next, next + atOnce).map((each) => take(provider, inventory, key, each, request, signal)),
          )),
        );
      }
      await store.record(
        done.map((finding) => strayEvent(finding.settled ? 'stray.revoked' : 'stray.failed', finding, key, request)),
      );
      result.settled += done.filter(({ settled }) => settled).length;
      yield* done;
    }
  }

  /** Judged after it was listed: whatever is at the target now had its lease committed before. */
  async function suspectsAmong(
    key: TargetKey,
    held: readonly HeldAtTarget[],
    result: TargetResult,
  ): Promise<Finding[]> {
    const ids = (pick: (each: HeldAtTarget) => string | undefined) => held.map(pick).filter((id) => id !== undefined);
    const known = await store.known(
      ids(({ leaseId }) => leaseId),
      ids(({ leaseId, taskId }) => (leaseId === undefined ? taskId : undefined)),
    );
    const now = clock.now();
    const suspects: Finding[] = [];
    for (const { handle, leaseId, taskId, madeAt, owner } of held) {
      const id = leaseId ?? taskId;
      const as = id === undefined ? undefined : known.get(id);
      const finding = { handle, leaseId, taskId, madeAt, settled: false, error: undefined };
      if (as?.as === 'open') continue;
      if (as?.as === 'irrevocable') result.irrevocable += 1;
      else if (as?.as === 'settled') {
        // What is another tenant's is that tenant's to see.
        if (as.tenant === key.tenant) suspects.push({ ...finding, kind: 'stray_settled', taskId: as.taskId });
      } else if (owner !== 'ours') result.unmarked += 1;
      else if (madeAt === undefined || madeAt > now - safeAge) result.young += 1;
      else suspects.push({ ...finding, kind: 'stray_unknown' });
    }
    return suspects;
  }

  async function take(
    provider: TargetProvider,
    inventory: TargetInventory,
    key: TargetKey,
    finding: Finding,
    request: ReconcileRequest,
    signal: AbortSignal,
  ): Promise<Finding> {
    const { handle, kind } = finding;
    try {
      const remaining = await within(options.revokeTimeout, (limit) => provider.revoke(handle, limit), signal);
      if (remaining !== undefined) {
        const because =
          'deadBy' in remaining
            ? `it cannot be revoked alone and dies by itself at ${new Date(remaining.deadBy).toISOString()}`
            : remaining.because;
        throw new BrokerError('PROVIDER_UNAVAILABLE', because);
      }
      const left = await within(listTimeout, (bounded) => inventory.present(key.target, [handle], bounded), signal);
      if (left.has(handle)) {
        throw new BrokerError('PROVIDER_UNAVAILABLE', 'the target holds it although it was revoked');
      }
      emit('stray.revoked', { ...named(key), handle, why: whyOf(kind), by: request.actor });
      return { ...finding, settled: true };
    } catch (error) {
      emit('stray.failed', { ...named(key), handle, error });
      return { ...finding, error: (error instanceof Error ? error.message : String(error)).slice(0, 500) };
    }
  }

  /**
   * Active before the look at the target and after it, and not there at the look: a settlement makes a lease `settling` before
   * it takes the credential away.
   */
  async function missing(
    inventory: TargetInventory,
    key: TargetKey,
    leases: readonly Lease[],
    signal: AbortSignal,
  ): Promise<Lease[]> {
    const now = clock.now();
    const ripe = leases.filter(({ issuedAt, expiresAt }) => issuedAt <= now - settledIn && expiresAt > now);
    if (ripe.length === 0) return [];
    const handles = ripe.map(({ handle }) => handle);
    const there = await within(listTimeout, (bounded) => inventory.present(key.target, handles, bounded), signal);
    const absent = ripe.filter(({ handle }) => !there.has(handle));
    if (absent.length === 0) return [];
    // Under the same handle: the credential may have been made anew meanwhile.
    const active = await store.activeHandles(
      key.tenant,
      absent.map(({ leaseId }) => leaseId),
    );
    return absent.filter(({ handle }) => active.has(handle));
  }

  function strayEvent(kind: AuditKind, finding: Finding, key: TargetKey, request: ReconcileRequest): AuditEvent {
    const { handle, leaseId, taskId, error } = finding;
    return {
      tenant: key.tenant,
      kind,
      at: clock.now(),
      actor: request.actor,
      taskId: taskId ?? '',
      ...(leaseId === undefined ? {} : { leaseId }),
      detail: {
        ...named(key),
        handle,
        why: whyOf(finding.kind),
        request_id: request.requestId,
        ...(error === undefined ? {} : { error }),
      },
    };
  }
}

function missingFinding({ handle, leaseId, taskId, issuedAt }: Lease): Finding {
  return { kind: 'missing', handle, leaseId, taskId, madeAt: issuedAt, settled: false, error: undefined };
}

function whyOf(kind: Finding['kind']): string {
  return kind === 'stray_settled' ? 'settled' : 'unknown';
}

function named({ provider, target }: TargetKey) {
  return { provider, target };
}

function nothing(): TargetResult {
  return {
    held: 0,
    leases: 0,
    strays: 0,
    settled: 0,
    missing: 0,
    unmarked: 0,
    young: 0,
    irrevocable: 0,
    error: undefined,
  };
}
