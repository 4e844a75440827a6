import type { DecisionFacts, Facts } from '../facts.ts';
import { aboutDecision } from './board.ts';
import type { Signal, SignalFact } from './model.ts';
import type { SignalBoard } from './store.ts';

const nothing: Facts = { held: undefined, lineage: undefined, earlier: undefined, rates: new Map() };

/** What storage knows, and what the board has: a decision that needs only signals costs no query. */
export function withSignals(stored: DecisionFacts, board: SignalBoard): DecisionFacts {
  return {
    load: async (task, access, needs, now, except) => {
      const fromStorage = needs.held || needs.called || needs.lineage || needs.earlier || needs.rates.length > 0;
      const [facts, signals] = await Promise.all([
        fromStorage ? stored.load(task, access, needs, now, except) : nothing,
        needs.signals ? board.about(task.tenant, aboutDecision(task, access.tool), now) : undefined,
      ]);
      return signals === undefined ? facts : { ...facts, signals: signals.map(factOf) };
    },
  };
}

function factOf({ subject, kind, value, source }: Signal): SignalFact {
  return { subject: subject.kind, kind, value, source };
}
