import { createSetVerifier, type SetVerifier } from './attestors/security-events/verifier.ts';
import type { Config } from './config/config.ts';
import type { NewId } from './domain/ids.ts';
import type { DecisionFacts } from './domain/facts.ts';
import type { PolicySource } from './domain/policy.ts';
import { createSignalBoard } from './domain/signals/board.ts';
import { withSignals } from './domain/signals/facts.ts';
import { createSignalReevaluator } from './domain/signals/reevaluation.ts';
import { createReviews } from './domain/signals/reviews.ts';
import { createSignals, type Signals } from './domain/signals/signals.ts';
import type { SignalBoard } from './domain/signals/store.ts';
import type { Emit } from './domain/telemetry.ts';
import type { Clock, Millis } from './domain/time.ts';
import type { Observability } from './observability/observability.ts';
import type { HttpRoute } from './server/http-route.ts';
import { securityEventRoute, type SecurityEventRouteOptions } from './signal-routes.ts';
import type { Storage } from './storage/storage.ts';
import type { Loop } from './workers/loop.ts';

export interface SignalWiring {
  clock: Clock;
  newId: NewId;
  policy: PolicySource;
  storage: Storage;
  maxInForce: number;
  worker: (name: string, interval: Millis, round: () => Promise<boolean>) => Loop;
  kickSettler: () => void;
  observability: Observability;
  emit: Emit;
  onClose: (close: () => void) => void;
}

/** The receiver of security events, where the configuration names transmitters. */
export function openTransmitters(
  { transmitters }: Config['signals'],
  skew: Millis,
  options: Omit<SecurityEventRouteOptions, 'verifier' | 'limits' | 'monotonic'>,
): { routes: HttpRoute[]; status: SetVerifier['status']; close: () => Promise<void> } {
  if (transmitters.length === 0) return { routes: [], status: () => [], close: () => Promise.resolve() };
  const verifier = createSetVerifier({ transmitters, clock: options.clock, skew, timeout: 5_000 });
  const limits = new Map(transmitters.map(({ name, keep, perSecond, burst }) => [name, { keep, perSecond, burst }]));
  const route = securityEventRoute({ ...options, verifier, limits, monotonic: () => performance.now() });
  return { routes: [route], status: (now) => verifier.status(now), close: () => verifier.close() };
}

export interface WiredSignals {
  board: SignalBoard;
  facts: DecisionFacts;
  signals: Signals;
}

/** Well under the second within which every decision sees a signal. */
const staleAfter: Millis = 700;
const day = 86_400_000;
const expiredAtOnce = 500;

/** Signals as the rest of the broker meets them: facts of decisions, a service, and work in the background. */
export function wireSignals(wiring: SignalWiring): WiredSignals {
  const { clock, newId, policy, storage, emit } = wiring;
  const board = createSignalBoard({
    store: storage.signals,
    now: () => clock.now(),
    monotonic: () => performance.now(),
    staleAfter,
  });
  const facts = withSignals(storage.facts, board);
  const reevaluator = createSignalReevaluator({
    clock,
    newId,
    policy,
    store: storage.signalReevaluation,
    board,
    facts,
    kickSettler: wiring.kickSettler,
    emit,
  });
  const reevaluating = wiring.worker('signal-reevaluate', 500, () => reevaluator.tick());
  // Without a rule that reads signals nobody looks at the board; it is kept for the count of what is in force.
  let rounds = 0;
  const following = wiring.worker('signals', 250, async () => {
    const watching = policy.tenants.some((tenant) => policy.current(tenant).watching);
    if (watching || rounds++ % 20 === 0) await board.refresh();
    return false;
  });
  wiring.onClose(
    storage.wake.onSignal(() => {
      following.kick();
      reevaluating.kick();
    }),
  );
  wiring.worker('expire-signals', 500, async () => {
    const found = await storage.signals.queueExpired(expiredAtOnce);
    if (found > 0) reevaluating.kick();
    return found === expiredAtOnce;
  });
  wiring.worker('forget-signals', 600_000, async () => {
    await storage.signals.forget(clock.now() - day);
    return false;
  });
  const signals = createSignals({
    clock,
    newId,
    policy,
    store: storage.signals,
    board,
    maxInForce: wiring.maxInForce,
    kick: () => reevaluating.kick(),
    emit,
  });
  const reviews = policy.tenants.map((tenant) => createReviews({ clock, policy, board, signals, tenant }));
  wiring.worker('reviews', 10_000, async () => {
    for (const each of reviews) await each.tick();
    return false;
  });
  wiring.observability.gauge(
    'agents_review_overdue',
    'Registered agents whose review is overdue, of all tenants.',
    () => sum(reviews.map((each) => each.overdue().length)),
  );
  wiring.observability.gauge('signals_in_force', 'Signals in force, as this replica has them at hand.', () =>
    sum(policy.tenants.map((tenant) => board.count(tenant, clock.now()))),
  );
  return { board, facts, signals };
}

const sum = (numbers: readonly number[]): number => numbers.reduce((total, one) => total + one, 0);
