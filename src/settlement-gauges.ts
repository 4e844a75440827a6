import type { Observability } from './observability/observability.ts';
import type { TargetAlarm } from './storage/alarm-store.ts';

/** Gauges for alarms (docs/operations.md). Every replica shows the same: they come from the database. */
export function watchSettlement(observability: Observability, read: () => Promise<TargetAlarm[]>) {
  let last: readonly TargetAlarm[] = [];
  const gauge = (name: string, help: string, value: (alarm: TargetAlarm) => number) => {
    observability.gauges(name, help, ['provider', 'target'], () =>
      last.map((alarm) => ({
        labels: { provider: alarm.provider, target: alarm.target },
        value: value(alarm),
      })),
    );
  };
  gauge('leases_troubled', 'Leases whose settlement failed and has not succeeded.', (alarm) => alarm.troubled);
  gauge('leases_irrevocable', 'Leases that could not be revoked and that nobody has taken on.', (a) => a.irrevocable);
  gauge('leases_due', 'Leases that are due for settlement.', (alarm) => alarm.due);
  gauge('settle_oldest_seconds', 'Age of the oldest settlement that is not done.', (alarm) => alarm.oldest);
  gauge('settle_attempts_max', 'Most attempts at one troubled or irrevocable lease.', (alarm) => alarm.attempts);
  gauge('target_strays', 'Strays that the last comparison found and left.', (alarm) => alarm.strays);
  gauge('target_missing', 'Active leases that the target did not know at the last comparison.', (a) => a.missing);
  gauge('target_compared_seconds', 'When leases and target were last compared, Unix time.', (a) => a.comparedAt);
  return {
    read: async (): Promise<void> => {
      last = await read();
    },
  };
}
