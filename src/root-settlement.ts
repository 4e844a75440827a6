import { randomUUID } from 'node:crypto';
import { createLeaseCare } from './domain/lease-care.ts';
import type { Provider } from './domain/provider.ts';
import { createReconciler } from './domain/reconciliation.ts';
import type { Settler } from './domain/settlement.ts';
import type { Clock, Millis } from './domain/time.ts';
import type { Observability } from './observability/observability.ts';
import { revokeTimeout } from './root-bounds.ts';
import { watchSettlement } from './settlement-gauges.ts';
import type { Storage } from './storage/storage.ts';
import type { Loop } from './workers/loop.ts';

export interface SettlementWiring {
  clock: Clock;
  tenantOf: (kind: string, target: string) => string;
  storage: Storage;
  providers: ReadonlyMap<string, Provider>;
  settler: Settler;
  periodic: { enabled: boolean; every: Millis; settle: boolean };
  observability: Observability;
  worker: (name: string, interval: Millis, round: () => Promise<boolean>) => Loop;
  kickSettler: () => void;
  onClose: (close: () => void) => void;
}

/** What operators do about settlement, the comparison with targets now and then, and the gauges that alarms are made of. */
export function wireSettlement({
  clock,
  storage,
  settler,
  periodic,
  observability,
  worker,
  ...wiring
}: SettlementWiring) {
  const { emit } = observability;
  const care = createLeaseCare({
    clock,
    store: storage.leaseCare,
    leases: storage.leases,
    settler,
    kickSettler: wiring.kickSettler,
    emit,
  });
  const reconciler = createReconciler({
    clock,
    providers: wiring.providers,
    store: storage.reconciliation,
    tenantOf: wiring.tenantOf,
    revokeTimeout,
    periodic: periodic.enabled ? periodic : undefined,
    newRequestId: randomUUID,
    emit,
  });
  const stopping = new AbortController();
  worker('reconcile', 60_000, async () => {
    await reconciler.tick(stopping.signal);
    return false;
  });
  // Before the worker is waited for.
  wiring.onClose(() => stopping.abort());
  const alarms = watchSettlement(observability, storage.alarms);
  worker('alarms', 15_000, async () => {
    await alarms.read();
    return false;
  });
  return { care, reconciler };
}
