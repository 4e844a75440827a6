import { suggestion } from '../config/suggest.ts';
import { fieldsOf } from './activation.ts';

/** What is wrong with a condition, and where in its text. */
export interface ConditionFault {
  /** From 0. */
  offset: number;
  message: string;
  hint?: string;
}

export function unknownField(owner: string, word: string, offset: number): ConditionFault {
  const message = `${owner === '' ? 'there' : owner} has no field "${word}"`;
  if (owner === 'task' && word === 'intent') {
    return { offset, message, hint: 'free text never decides; put what decides into task.context' };
  }
  const hint = suggestion(word, Object.keys(fieldsOf(owner) ?? {}), 'fields');
  return { offset, message, ...(hint === undefined ? {} : { hint }) };
}
